/** Values of single fields, read as leniently as vLLM reads them: refusing more than the engine would only cost the client. */
import { kindText, textOfString, type ByteRange, type JsonKind } from './json-scan.ts';

/** Where a value stands and what it is. */
export type FieldValue = ByteRange & { readonly kind: JsonKind };

/** Kind and place; a client's own short scalar is quoted, as it tells more. */
export function describe(body: Uint8Array, { kind, start, end }: FieldValue): string {
  const isShort = end - start <= 24 && (kind === 'number' || kind === 'boolean');
  return `${isShort ? rawText(body, { start, end }) : kindText(kind)} at byte ${start}`;
}

function rawText(body: Uint8Array, { start, end }: ByteRange): string {
  return Buffer.from(body.buffer, body.byteOffset + start, end - start).toString('latin1');
}

/** A boolean, or what pydantic takes for one. */
export function isFlag(body: Uint8Array, field: FieldValue): boolean {
  if (field.kind === 'boolean') return true;
  return /^"?(1|0|true|false|t|f|yes|no|y|n|on|off|1\.0|0\.0)"?$/i.test(rawText(body, field));
}

export function isTrue(body: Uint8Array, field: FieldValue): boolean {
  return /^"?(1|true|t|yes|y|on|1\.0)"?$/i.test(rawText(body, field));
}

export function integerOf(body: Uint8Array, field: FieldValue): number | null {
  if (field.kind !== 'number' && field.kind !== 'string') return null;
  if (field.end - field.start > 32) return null;
  const text = field.kind === 'string' ? textOfString(body, field).trim() : rawText(body, field);
  const value = Number(text);
  return text !== '' && Number.isInteger(value) ? value : null;
}
