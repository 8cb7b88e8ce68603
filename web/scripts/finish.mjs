// After the build: every file that compresses well is compressed once, here, instead of for each visitor; and the first
// screen's script is held to its budget.
import { readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
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

// What the overview loads: the entry, and its own chunks with all that they import.
const manifest = JSON.parse(readFileSync(join(dist, ".vite/manifest.json"), "utf8"));
rmSync(join(dist, ".vite"), { recursive: true }); // for this script only
const wanted = new Set();
function want(key) {
  if (wanted.has(key)) return;
  wanted.add(key);
  for (const next of manifest[key].imports ?? []) want(next);
}
want("index.html");
for (const key of ["src/pages/overview.tsx", "src/components/chart.tsx"]) want(key);
const scripts = [...wanted].map((key) => join(dist, manifest[key].file)).filter((path) => path.endsWith(".js"));
const total = scripts.reduce((sum, path) => sum + (gzipped.get(path) ?? 0), 0);
console.log(`first screen: ${total} bytes of gzipped script, ${budget} are allowed`);
if (total > budget) {
  console.error("the first screen is too heavy: load what it doesn't need later (lazyRouteComponent, lazy)");
  process.exit(1);
}
