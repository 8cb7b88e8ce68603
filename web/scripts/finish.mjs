// After the build: every file that compresses well is compressed once, here, instead of for each visitor; and the first
// screen's script is held to its budget.
import { readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { join, relative } from "node:path";
import { brotliCompressSync, constants, gzipSync } from "node:zlib";

const dist = new URL("../dist/", import.meta.url).pathname;
const budget = 200_000; // bytes of gzipped script until the first screen stands

function files(dir) {
  return readdirSync(dir).flatMap((name) => {
    const path = join(dir, name);
    return statSync(path).isDirectory() ? files(path) : [path];
  });
}

const gzipped = new Map();
for (const path of files(dist)) {
  if (!/\.(js|css|html|svg|json)$/.test(path)) continue;
  const raw = readFileSync(path);
  const gz = gzipSync(raw, { level: 9 });
  gzipped.set(path, gz.length);
  // The page is a kilobyte and asked for anew each time.
  if (path.endsWith(".html")) continue;
  if (gz.length < raw.length) writeFileSync(`${path}.gz`, gz);
  const br = brotliCompressSync(raw, { params: { [constants.BROTLI_PARAM_QUALITY]: 11 } });
  if (br.length < raw.length) writeFileSync(`${path}.br`, br);
}

// What is loaded until a first screen stands: the entry, the page, and all that they import, statically or not, but what
// the source leaves for later(…) or until it is asked(…) for, and the other pages. web/speed measures the same in a browser.
const source = new URL("../src/", import.meta.url).pathname;
const waits = new Set();
for (const path of files(source).filter((name) => /\.tsx?$/.test(name))) {
  for (const [, at] of readFileSync(path, "utf8").matchAll(/\b(?:later|asked)\(\(\) => import\("([^"]+)"\)/g)) {
    const module = at.startsWith("@/") ? join(source, at.slice(2)) : join(path, "..", at);
    waits.add(`src/${relative(source, module)}`);
  }
}
const manifest = JSON.parse(readFileSync(join(dist, ".vite/manifest.json"), "utf8"));
rmSync(join(dist, ".vite"), { recursive: true }); // for this script only
const named = (key) => key.replace(/\.tsx?$/, "");
for (const module of waits) {
  if (!Object.keys(manifest).some((key) => named(key) === module)) throw new Error(`${module} waits and isn't a chunk of its own: something imports it statically`);
}

for (const [screen, page] of [["sign-in", "src/pages/sign-in.tsx"], ["overview", "src/pages/overview.tsx"]]) {
  const wanted = new Set();
  const want = (key) => {
    if (wanted.has(key)) return;
    wanted.add(key);
    for (const next of manifest[key].imports ?? []) want(next);
    for (const next of manifest[key].dynamicImports ?? []) {
      if (!waits.has(named(next)) && !next.startsWith("src/pages/")) want(next);
    }
  };
  for (const key of ["index.html", page]) want(key);
  // Its text is asked for by the page itself.
  if (screen === "sign-in") want("src/i18n/en/rest.ts");
  const scripts = [...wanted].map((key) => join(dist, manifest[key].file)).filter((path) => path.endsWith(".js"));
  scripts.push(join(dist, "theme.js"));
  const total = scripts.reduce((sum, path) => sum + (gzipped.get(path) ?? 0), 0);
  console.log(`first screen (${screen}): ${total} bytes of gzipped script, ${budget} are allowed`);
  if (total > budget) {
    console.error("the first screen is too heavy: load what it doesn't need later (lazyRouteComponent, src/lib/later.ts)");
    process.exitCode = 1;
  }
}
