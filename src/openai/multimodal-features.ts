/** Multimodal items of a tokenized prompt, as vLLM's render endpoints give them and its token-in API takes them. */
import type { ByteRange, JsonScanner } from './json-scan.ts';

/** `identifier` covers tokens offset … offset+length−1 of the prompt. */
export type MultimodalFeature = { readonly identifier: string; readonly offset: number; readonly length: number };

/**
 * Consumes `{mm_hashes: {modality: [hash]}, mm_placeholders: {modality: [{offset, length}]}, …}`.
 * @returns ordered by offset; null when hashes and places do not pair up, or the scanner found a problem
 */
export function readFeatures(scanner: JsonScanner): readonly MultimodalFeature[] | null {
  const ranges = new Map<string, ByteRange>();
  // Processed images may stand beside, megabytes of them: skipped, never parsed.
  const complete = scanner.object((key) => {
    const start = scanner.pos;
    if (!scanner.skipValue()) return false;
    if (key === 'mm_hashes' || key === 'mm_placeholders') ranges.set(key, { start, end: scanner.pos });
    return true;
  });
  if (!complete) return null;
  const hashes = recordOfLists(scanner.bytes, ranges.get('mm_hashes'));
  const placeholders = recordOfLists(scanner.bytes, ranges.get('mm_placeholders'));
  const features: MultimodalFeature[] = [];
  for (const [modality, places] of Object.entries(placeholders)) {
    const identifiers = hashes[modality] ?? [];
    if (identifiers.length !== places.length) return null;
    for (let i = 0; i < places.length; i++) {
      const identifier = identifiers[i];
      const { offset, length } = (places[i] ?? {}) as { offset?: unknown; length?: unknown };
      if (typeof identifier !== 'string' || !isCount(offset) || !isCount(length)) return null;
      features.push({ identifier, offset, length });
    }
  }
  return features.sort((a, b) => a.offset - b.offset);
}

/** Whether all of them lie inside a prompt of so many tokens. */
export function featuresFit(features: readonly MultimodalFeature[], nTokens: number): boolean {
  return features.every(({ offset, length }) => offset + length <= nTokens);
}

function recordOfLists(bytes: Uint8Array, range: ByteRange | undefined): Record<string, readonly unknown[]> {
  if (range === undefined) return {};
  const text = Buffer.from(bytes.buffer, bytes.byteOffset + range.start, range.end - range.start).toString('utf8');
  const value: unknown = JSON.parse(text);
  if (typeof value !== 'object' || value === null) return {};
  return Object.fromEntries(
    Object.entries(value).filter((entry): entry is [string, unknown[]] => Array.isArray(entry[1])),
  );
}

function isCount(value: unknown): value is number {
  return typeof value === 'number' && Number.isInteger(value) && value >= 0;
}
