/** Multimodal items of a tokenized prompt, as vLLM's render endpoints give them and its token-in API takes them. */
import { textOfString, type JsonScanner } from './json-scan.ts';

/** `identifier` covers tokens offset … offset+length−1 of the prompt. */
export type MultimodalFeature = { readonly identifier: string; readonly offset: number; readonly length: number };

/**
 * Consumes `{mm_hashes: {modality: [hash]}, mm_placeholders: {modality: [{offset, length}]}, …}`.
 * @returns ordered by offset; null when hashes and places do not pair up, or the scanner found a problem
 */
export function readFeatures(scanner: JsonScanner): readonly MultimodalFeature[] | null {
  let hashes: Lists<string> = new Map();
  let placeholders: Lists<Place> = new Map();
  // Processed images may stand beside, megabytes of them: skipped, never parsed.
  const complete = scanner.object((key) => {
    if (key === 'mm_hashes') hashes = readLists(scanner, readText);
    else if (key === 'mm_placeholders') placeholders = readLists(scanner, readPlace);
    else scanner.skipValue();
    return scanner.problem === null;
  });
  if (!complete) return null;
  const features: MultimodalFeature[] = [];
  for (const [modality, places] of placeholders) {
    const identifiers = hashes.get(modality) ?? [];
    if (identifiers.length !== places.length) return null;
    for (let i = 0; i < places.length; i++) {
      const identifier = identifiers[i]!;
      const place = places[i]!;
      if (identifier === null || place === null) return null;
      features.push({ identifier, ...place });
    }
  }
  return features.sort((a, b) => a.offset - b.offset);
}

/**
 * Whether all of them lie inside a prompt of so many tokens, and no more of them on one token, on average, than an engine
 * places there: a video and its sound. Each is a key of every block it overlaps.
 */
export function featuresFit(features: readonly MultimodalFeature[], nTokens: number): boolean {
  const nCovered = features.reduce((sum, { length }) => sum + length, 0);
  return nCovered <= MAX_PER_TOKEN * nTokens && features.every(({ offset, length }) => offset + length <= nTokens);
}

/** Modality → what its list holds, null for what is something else; the last list of several. */
type Lists<T> = Map<string, readonly (T | null)[]>;
type Place = { readonly offset: number; readonly length: number };

const MAX_PER_TOKEN = 4;
const MAX_MODALITIES = 64;
/** Of one modality; more are none at all. */
const MAX_ITEMS = 4096;
/** Of an identifier, in UTF-8 with its quotes: a digest has 64, and a name of the client's own is hashed for every block. */
const MAX_IDENTIFIER_BYTES = 1024;

function readLists<T>(scanner: JsonScanner, readOne: (scanner: JsonScanner) => T | null): Lists<T> {
  const lists = new Map<string, (T | null)[]>();
  if (scanner.peekKind() !== 'object') {
    scanner.skipValue();
    return lists;
  }
  scanner.object((modality) => {
    lists.delete(modality);
    const isOneTooMany = lists.size >= MAX_MODALITIES;
    if (isOneTooMany) lists.set('', [null]);
    if (isOneTooMany || scanner.peekKind() !== 'array') return scanner.skipValue();
    const list: (T | null)[] = [];
    lists.set(modality, list);
    return scanner.array((index) => {
      if (index > MAX_ITEMS) return scanner.skipValue();
      list.push(index < MAX_ITEMS ? readOne(scanner) : null);
      return scanner.problem === null;
    });
  });
  return lists;
}

function readText(scanner: JsonScanner): string | null {
  const kind = scanner.peekKind();
  const start = scanner.pos;
  if (!scanner.skipValue() || kind !== 'string' || scanner.pos - start > MAX_IDENTIFIER_BYTES) return null;
  return textOfString(scanner.bytes, { start, end: scanner.pos });
}

/** `{offset, length, …}` */
function readPlace(scanner: JsonScanner): Place | null {
  if (scanner.peekKind() !== 'object') {
    scanner.skipValue();
    return null;
  }
  const place = { offset: -1, length: -1 };
  scanner.object((key) => {
    const kind = scanner.peekKind();
    const start = scanner.pos;
    if (!scanner.skipValue()) return false;
    if (key === 'offset' || key === 'length') {
      const value = kind === 'number' ? Number(scanner.scalarText(start, scanner.pos)) : -1;
      place[key] = Number.isInteger(value) ? value : -1;
    }
    return true;
  });
  return place.offset < 0 || place.length < 0 ? null : place;
}
