/** words splits what people list: blanks, commas, semicolons, lines; each once. */
export function words(text: string): string[] {
  return [...new Set(text.split(/[\s,;]+/).filter((part) => part !== ""))];
}
