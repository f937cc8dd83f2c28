/** Words of messages about wrong input: what was got, and what was probably meant. */

/** A wrong value as a message shows it: short, and without the credentials of a URL. */
export function showGot(raw: unknown): string {
  const shown = raw === undefined ? 'nothing' : withoutCredentials(JSON.stringify(raw) ?? typeof raw);
  return shown.length > 80 ? `${shown.slice(0, 77)}...` : shown;
}

/** The text with `user:password@` of every URL replaced by `***@`. */
export function withoutCredentials(value: string): string {
  return value.replaceAll(/(\/\/)[^/?#@\s"]*(?:@[^/?#@\s"]*)*@/g, '$1***@');
}

/** The name among `known` that a typist most likely meant; null where none is like it. */
export function nearestName(name: string, known: readonly string[]): string | null {
  const lastPart = (text: string): string => text.slice(text.lastIndexOf('.') + 1);
  const distance = (one: string): number =>
    Math.min(
      editDistance(name.toLowerCase(), one.toLowerCase()),
      // A right name in the wrong section is a likely mistake too.
      editDistance(lastPart(name).toLowerCase(), lastPart(one).toLowerCase()) + 2,
    );
  let best: string | null = null;
  let bestDistance = Math.max(MAX_TYPOS, Math.floor(name.length * MAX_WRONG_SHARE)) + 1;
  for (const one of known) {
    const d = distance(one);
    if (d < bestDistance) [best, bestDistance] = [one, d];
  }
  return best;
}

/** So many letters may be wrong in a short name, such a part of a long one. */
const MAX_TYPOS = 3;
const MAX_WRONG_SHARE = 1 / 3;

/** Levenshtein distance in one row of memory. */
function editDistance(a: string, b: string): number {
  const row = Array.from({ length: b.length + 1 }, (_, index) => index);
  for (let i = 1; i <= a.length; i++) {
    let diagonal = row[0]!;
    row[0] = i;
    for (let j = 1; j <= b.length; j++) {
      const above = row[j]!;
      const substituted = diagonal + (a[i - 1] === b[j - 1] ? 0 : 1);
      row[j] = Math.min(above + 1, row[j - 1]! + 1, substituted);
      diagonal = above;
    }
  }
  return row[b.length]!;
}
