// A browser says what it is in a line that no person reads; what calls itself a browser in the usual way is shown by name.

const usual = /^Mozilla\/5\.0 \([\w .;:,/+-]+\)[\w .;:,/()+-]*$/;
const browsers = [
  ["Edge", /\bEdg(?:A|iOS)?\/(\d+)/],
  ["Opera", /\bOPR\/(\d+)/],
  ["Firefox", /\b(?:Firefox|FxiOS)\/(\d+)/],
  ["Chrome", /\b(?:HeadlessChrome|Chrome|CriOS)\/(\d+)/],
  ["Safari", /\bVersion\/(\d+)\S* (?:Mobile\/\w+ )?Safari\//],
] as const;
const systems = [
  ["Windows", /\bWindows NT\b/],
  ["Android", /\bAndroid\b/],
  ["iPhone", /\biPhone\b/],
  ["iPad", /\biPad\b/],
  ["macOS", /\bMacintosh\b/],
  ["ChromeOS", /\bCrOS\b/],
  ["Linux", /\bLinux\b/],
] as const;

/** program is what a user agent calls itself, in short: "Firefox 140 · Linux". Undefined where it isn't a browser's usual line. */
export function program(userAgent: string): string | undefined {
  if (userAgent.length > 500 || !usual.test(userAgent)) return undefined;
  for (const [name, mark] of browsers) {
    const version = mark.exec(userAgent)?.[1];
    if (version === undefined) continue;
    const system = systems.find(([, m]) => m.test(userAgent))?.[0];
    return system ? `${name} ${version} · ${system}` : `${name} ${version}`;
  }
  return undefined;
}
