/**
 * `cache_control` marks by which clients of Anthropic's API say what is to be cached. With every turn they move to the newest
 * messages, so that one which was the last is spelt otherwise as soon as it is history. No template sees them, and keys of
 * a prompt are made without them.
 */
import { JsonScanner, type ByteRange } from '../openai/json-scan.ts';

export type Text = { readonly body: Uint8Array; readonly ranges: readonly ByteRange[] };

const MARK = '"cache_control"';
const BACKSLASH = 0x5c;
const COLON = 0x3a;
const COMMA = 0x2c;
const SPACES: ReadonlySet<number | undefined> = new Set([0x20, 0x0a, 0x0d, 0x09]);

/** The same ranges without marks, in bytes of their own; as they are where there is none. */
export function withoutMarks(text: Text): Text {
  const { body, ranges } = text;
  if (!Buffer.from(body.buffer, body.byteOffset, body.length).includes(MARK)) return text;
  const copy = new Uint8Array(ranges.reduce((sum, { start, end }) => sum + end - start, 0));
  let at = 0;
  const keep = (start: number, end: number): void => {
    copy.set(body.subarray(start, end), at);
    at += end - start;
  };
  const moved = ranges.map((range) => {
    const start = at;
    let from = range.start;
    for (const mark of marksIn(body, range)) {
      if (mark.start < from) continue;
      keep(from, mark.start);
      from = mark.end;
    }
    keep(from, range.end);
    return { start, end: at };
  });
  return { body: copy.subarray(0, at), ranges: moved };
}

/** Members of that name with a comma beside each. Inside of texts quotes are escaped. */
function marksIn(body: Uint8Array, { start: from, end: to }: ByteRange): readonly ByteRange[] {
  const bytes = Buffer.from(body.buffer, body.byteOffset, to);
  const marks: ByteRange[] = [];
  const scanner = new JsonScanner(bytes);
  let start = bytes.indexOf(MARK, from);
  while (start >= 0) {
    const colon = afterSpaces(bytes, start + MARK.length);
    scanner.pos = colon + 1;
    if (bytes[start - 1] === BACKSLASH || bytes[colon] !== COLON) {
      start = bytes.indexOf(MARK, start + MARK.length);
      continue;
    }
    if (!scanner.skipValue()) break;
    const end = scanner.pos;
    let before = start;
    while (SPACES.has(bytes[before - 1])) before--;
    const after = afterSpaces(bytes, end);
    if (bytes[before - 1] === COMMA) marks.push({ start: before - 1, end });
    else marks.push({ start, end: bytes[after] === COMMA ? after + 1 : end });
    // Not inside of it: marks in marks would be walked through once more for each.
    start = bytes.indexOf(MARK, end);
  }
  return marks;
}

function afterSpaces(bytes: Buffer, from: number): number {
  let at = from;
  while (SPACES.has(bytes[at])) at++;
  return at;
}
