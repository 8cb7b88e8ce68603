/** plural picks a form by number; "#" becomes the number. */
export function plural(n: number, one: string, many: string): string {
  return (n === 1 ? one : many).replace("#", String(n));
}
