/**
 * Images and sounds that stand inside a body in base64: megabytes that are no text. An image is some hundred tokens
 * whatever its bytes, so for the estimate of tokens each counts as a fixed number of bytes of text.
 */
import type { ByteRange } from '../openai/json-scan.ts';

/** About a thousand tokens, what a picture of a megapixel comes to in today's models. */
export const MEDIA_BYTES = 4096;

const QUOTE = 0x22;
const COLON = 0x3a;
const BACKSLASH = 0x5c;
const SPACE = 0x20;
const DATA = '"data';

/** Strings of base64 in one value of a body, without their quotes: `"data:image/…"`, or the value of a key `data`. Short ones are left out. */
export function mediaRanges(body: Uint8Array, { start, end }: ByteRange): readonly ByteRange[] {
  if (end - start <= MEDIA_BYTES) return [];
  const bytes = Buffer.from(body.buffer, body.byteOffset, end);
  const ranges: ByteRange[] = [];
  for (let at = bytes.indexOf(DATA, start); at >= 0; at = bytes.indexOf(DATA, at)) {
    const from = bytes[at - 1] === BACKSLASH ? -1 : stringStart(bytes, at);
    at += DATA.length;
    if (from < 0) continue;
    const quote = bytes.indexOf(QUOTE, from);
    const close = quote < 0 ? end : quote;
    if (close - from > MEDIA_BYTES) ranges.push({ start: from, end: close });
    at = close;
  }
  return ranges;
}

/** Bytes before `at` that are more than the ranges count for. */
export function surplusBytes(ranges: readonly ByteRange[], at: number): number {
  let surplus = 0;
  for (const { start, end } of ranges) surplus += Math.max(0, Math.min(at, end) - start - MEDIA_BYTES);
  return surplus;
}

/** Of a body that is text as a whole, or the beginning of one that was cut. */
export function textBytes(body: Uint8Array): number {
  const nBytes = body.length;
  return nBytes - surplusBytes(mediaRanges(body, { start: 0, end: nBytes }), nBytes);
}

/** First byte of the string that holds the data, −1 where none follows. @param at of `"data` */
function stringStart(bytes: Buffer, at: number): number {
  let next = at + DATA.length;
  if (bytes[next] === COLON) return at + 1;
  if (bytes[next] !== QUOTE) return -1;
  next++;
  while (bytes[next] === SPACE || bytes[next] === COLON) next++;
  return bytes[next] === QUOTE ? next + 1 : -1;
}
