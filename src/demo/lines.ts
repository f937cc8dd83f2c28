/** Output of child processes, line by line. */

/** Calls back for every line that is not empty; a last line without its end is left out. */
export function eachLine(stream: NodeJS.ReadableStream, onLine: (line: string) => void): void {
  let rest = '';
  stream.setEncoding('utf8');
  stream.on('data', (text: string) => {
    const lines = (rest + text).split('\n');
    rest = lines.pop()!;
    for (const line of lines) if (line !== '') onLine(line);
  });
}

/** Appends, and forgets the oldest lines above `limit`. */
export function keepLast(lines: string[], line: string, limit: number): void {
  lines.push(line);
  if (lines.length > limit) lines.splice(0, lines.length - limit);
}
