/** The scanner against JSON.parse: accepts the same texts, finds the same fields, reads the same ids. */
import { describe, expect, test } from '@jest/globals';
import fc from 'fast-check';
import { JsonScanner } from '../../src/openai/json-scan.ts';
import { parseRequest } from '../../src/openai/request.ts';
import { readTokenIds } from '../../src/openai/token-ids.ts';

const RUNS = { numRuns: 1500 };

const space = fc.constantFrom('', '', '', ' ', '\n', '\t\r\n ');
const quoted = (text: string): string => JSON.stringify(text).slice(1, -1);
/** A piece of a JSON string, with escapes where they are possible, not only where they are needed. */
const piece = fc.oneof(
  { weight: 6, arbitrary: fc.string({ unit: 'grapheme', minLength: 1, maxLength: 12 }).map(quoted) },
  {
    weight: 2,
    arbitrary: fc.constantFrom('é', '漢字', '😀', '\u2028', '\u007f', '\ud800', '\udc00\ud83d').map(quoted),
  },
  {
    weight: 2,
    arbitrary: fc.constantFrom('\\n', '\\"', '\\\\', '\\/', '\\u0041', '\\ud83d\\ude00', '\\ud800', '\\u00E9'),
  },
  { weight: 1, arbitrary: fc.constantFrom('a'.repeat(70), '0123456789abcdef', '{"x":[1,2]}', 'model').map(quoted) },
);
const stringText = fc.array(piece, { maxLength: 4 }).map((pieces) => `"${pieces.join('')}"`);
const numberText = fc.oneof(
  fc.integer().map(String),
  fc.double({ noNaN: true, noDefaultInfinity: true }).map((value) => JSON.stringify(value)),
  fc.constantFrom(
    '0',
    '-0',
    '1e5',
    '1E+400',
    '-1.5e-7',
    '0.0',
    '4294967296',
    '9007199254740993',
    '1'.repeat(400),
    '2.50',
  ),
);
const scalarText = fc.oneof(stringText, numberText, fc.constantFrom('true', 'false', 'null'));
/**
 * No backslash in a key: V8 13.6 (Node 24) takes the key "\n" for a lone backslash after it has parsed an object with that
 * key in the same place, `JSON.parse('{"q":1,"\\\\":2}'); JSON.parse('{"q":1,"\\n":2}')`, and is no oracle there.
 */
const keyText = stringText.filter((text) => !(JSON.parse(text) as string).includes('\\'));
const { value: valueText } = fc.letrec<{ value: string }>((tie) => ({
  value: fc.oneof(
    { maxDepth: 5, withCrossShrink: true },
    scalarText,
    fc
      .tuple(fc.array(tie('value'), { maxLength: 4 }), space, space)
      .map(([items, before, after]) => `[${before}${items.join(`${after},${before}`)}${after}]`),
    fc
      .tuple(fc.array(fc.tuple(keyText, tie('value')), { maxLength: 4 }), space, space)
      .map(
        ([members, a, b]) => `{${a}${members.map(([key, value]) => `${key}${a}:${b}${value}`).join(`${b},${a}`)}${a}}`,
      ),
  ),
}));
const memberKey = fc.oneof(
  keyText,
  fc.constantFrom('"model"', '"m\\u006fdel"', '"messages"', '"__proto__"', '"constructor"', '""', '"usage"'),
);
const objectText = fc
  .tuple(fc.array(fc.tuple(memberKey, valueText), { maxLength: 8 }), space, space)
  .map(
    ([members, a, b]) =>
      `${a}{${b}${members.map(([key, value]) => `${key}${b}:${a}${value}`).join(`${a},${b}`)}${b}}${a}`,
  );

/** Bytes that begin anywhere in a word of memory, with a neighbour on either side that must not be looked at. */
function placed(text: string | Uint8Array, offset: number): Uint8Array {
  const bytes = Buffer.from(text);
  const memory = Buffer.alloc(bytes.length + 8, '"');
  memory.set(bytes, offset);
  return memory.subarray(offset, offset + bytes.length);
}

function accepts(bytes: Uint8Array): boolean {
  const scanner = new JsonScanner(bytes);
  return scanner.skipValue() && scanner.atEnd();
}

function parses(bytes: Uint8Array): boolean {
  try {
    JSON.parse(Buffer.from(bytes).toString('utf8'));
    return true;
  } catch {
    return false;
  }
}

/** Lone surrogates have no UTF-8: the text as it arrives. */
function wellFormed(text: string): string {
  return Buffer.from(text).toString('utf8');
}

describe('the JSON scanner', () => {
  test('accepts every text JSON.parse accepts, wherever its bytes begin in memory', () => {
    fc.assert(
      fc.property(fc.tuple(space, valueText, space), fc.nat(4), ([a, value, b], offset) => {
        expect(accepts(placed(a + value + b, offset))).toBe(true);
        expect(parses(Buffer.from(a + value + b))).toBe(true);
      }),
      RUNS,
    );
  });

  test('never accepts what JSON.parse refuses, nor refuses what it accepts, when bytes are changed, dropped or added', () => {
    const structural = [...'{}[]",:\\0123456789.eE+-truefalsn u/', '\x00', '\x1f', '\x7f', '\n', '\t', '\v'];
    const byte = fc.constantFrom(...structural.map((c) => c.charCodeAt(0)));
    let nRefused = 0;
    fc.assert(
      fc.property(
        valueText,
        fc.array(fc.tuple(fc.nat(), fc.constantFrom('change', 'drop', 'add'), byte), { minLength: 1, maxLength: 3 }),
        fc.nat(4),
        (text, edits, offset) => {
          // Latin-1 only, so that an edit of bytes never makes invalid UTF-8, which is not the scanner's to notice.
          const bytes = [...Buffer.from(text.replace(/[^\x00-\x7f]/g, 'x'))];
          for (const [place, edit, value] of edits) {
            const at = place % (bytes.length + 1);
            bytes.splice(at, edit === 'add' ? 0 : 1, ...(edit === 'drop' ? [] : [value]));
          }
          const changed = placed(Uint8Array.from(bytes), offset);
          const expected = parses(changed);
          if (!expected) nRefused++;
          expect(accepts(changed)).toBe(expected);
        },
      ),
      { numRuns: 4000 },
    );
    expect(nRefused).toBeGreaterThan(1000);
  });

  test('finds the fields JSON.parse finds, the last of equal keys, by ranges that are their text', () => {
    fc.assert(
      fc.property(objectText, fc.nat(4), (text, offset) => {
        const bytes = placed(text, offset);
        const scanner = new JsonScanner(bytes);
        const found = new Map<string, unknown>();
        const complete = scanner.object((key) => {
          const start = scanner.pos;
          if (!scanner.skipValue()) return false;
          found.delete(key);
          found.set(key, JSON.parse(Buffer.from(bytes.subarray(start, scanner.pos)).toString('utf8')));
          return true;
        });
        expect(complete && scanner.atEnd()).toBe(true);
        const oracle = Object.entries(JSON.parse(wellFormed(text)) as object);
        expect([...found].sort(byKey)).toEqual(oracle.sort(byKey));
      }),
      RUNS,
    );
  });

  test('calls every beginning of an object cut, and says so at its end', () => {
    fc.assert(
      fc.property(objectText, fc.nat(), (text, place) => {
        const whole = Buffer.from(text.trimEnd());
        const bytes = whole.subarray(0, place % whole.length);
        const scanner = new JsonScanner(bytes);
        expect(scanner.object(() => scanner.skipValue())).toBe(false);
        expect(scanner.problem).toMatchObject({ cut: true, position: bytes.length });
      }),
      RUNS,
    );
  });

  test('looks at a hundred thousand open brackets without running out of stack', () => {
    const depth = 100_000;
    expect(accepts(Buffer.from('[{"a":'.repeat(depth) + '0' + '}]'.repeat(depth)))).toBe(true);
    expect(accepts(Buffer.from('['.repeat(depth)))).toBe(false);
    expect(accepts(Buffer.from('['.repeat(depth) + '}'.repeat(depth)))).toBe(false);
  });
});

describe('a list of token ids', () => {
  const idText = fc.oneof(
    { weight: 8, arbitrary: fc.nat(200_000).map(String) },
    { weight: 2, arbitrary: fc.integer({ min: 0, max: 2 ** 32 + 2 }).map(String) },
    {
      weight: 1,
      arbitrary: fc.constantFrom('-1', '-0', '1.0', '1e3', '1.5', '01', '4294967295', '1e10', 'null', '"1"', '[]', ''),
    },
  );

  test('is read as JSON.parse reads it, and refused exactly when an element is no id', () => {
    let nIds = 0;
    let nWrong = 0;
    fc.assert(
      fc.property(fc.array(fc.tuple(space, idText, space), { maxLength: 40 }), fc.nat(4), (elements, offset) => {
        const text = `[${elements.map((parts) => parts.join('')).join(',')}]`;
        const scanner = new JsonScanner(placed(text, offset));
        const result = readTokenIds(scanner);
        const oracle = parses(Buffer.from(text)) ? (JSON.parse(text) as unknown[]) : null;
        const isId = (value: unknown): boolean =>
          Number.isInteger(value) && (value as number) >= 0 && (value as number) < 2 ** 32;
        if (oracle?.every(isId)) {
          nIds++;
          expect(result).toEqual({ kind: 'ids', tokenIds: Uint32Array.from(oracle as number[]) });
          expect(scanner.pos).toBe(text.length);
        } else if (oracle) {
          nWrong++;
          expect(result).toMatchObject({ kind: 'not_ids', index: oracle.findIndex((value) => !isId(value)) });
        } else {
          expect(result.kind).not.toBe('ids');
        }
      }),
      RUNS,
    );
    expect(Math.min(nIds, nWrong)).toBeGreaterThan(50);
  });

  test('cut anywhere gives the ids that were complete', () => {
    fc.assert(
      fc.property(fc.array(fc.nat(2 ** 32 - 1), { minLength: 1, maxLength: 30 }), fc.nat(), (ids, place) => {
        const text = JSON.stringify(ids);
        const cut = text.slice(0, 1 + (place % (text.length - 1)));
        const result = readTokenIds(new JsonScanner(Buffer.from(cut)));
        // A number that touches the cut may go on behind it.
        const complete = cut.slice(1).split(',').slice(0, -1).map(Number);
        expect(result).toEqual({ kind: 'problem', tokenIds: Uint32Array.from(complete) });
      }),
      RUNS,
    );
  });
});

describe('a request', () => {
  test('is refused as "not JSON" exactly when JSON.parse refuses it or it is no object', () => {
    fc.assert(
      fc.property(
        objectText,
        fc.nat(),
        fc.constantFrom('', '}', ',', '"', '\\', ':', ' 1', '\u0001'),
        (text, place, extra) => {
          const clean = text.replace(/[\ud800-\udfff]/g, 'x');
          const at = place % (clean.length + 1);
          const body = Buffer.from(clean.slice(0, at) + extra + clean.slice(at));
          const result = parseRequest('POST', '/v1/chat/completions', 'application/json', body, { truncated: 'no' });
          const isRefused = result.kind === 'bad_request' && result.param === null;
          expect(isRefused).toBe(!parses(body));
        },
      ),
      RUNS,
    );
  });
});

function byKey(a: readonly [string, unknown], b: readonly [string, unknown]): number {
  return a[0] < b[0] ? -1 : 1;
}
