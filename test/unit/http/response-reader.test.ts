import { describe, expect, test } from '@jest/globals';
import fc from 'fast-check';
import { ResponseReader } from '../../../src/http/response-reader.ts';

type Read = {
  state: string;
  status?: number;
  body?: string;
  date?: string | null;
  isReusable?: boolean;
  nBytes?: number;
  fault?: string;
};

/** @param cuts places where the bytes are cut into pieces; a piece is overwritten once it was read, as a socket's buffer is */
function read(response: string | Buffer, { cuts = [], maxBytes = 1000, isEnded = false } = {} as Options): Read {
  const bytes = typeof response === 'string' ? Buffer.from(response, 'latin1') : response;
  const reader = new ResponseReader();
  reader.begin(maxBytes);
  const places = [...new Set(cuts)].filter((at) => at > 0 && at < bytes.length).sort((a, b) => a - b);
  const result = (state: string): Read => {
    if (state === 'done') {
      const { status, date, isReusable } = reader;
      return { state, status, date, isReusable, body: reader.takeBody().toString('latin1') };
    }
    if (state === 'too_large') return { state, status: reader.status, nBytes: reader.nBytes };
    return state === 'broken' ? { state, fault: reader.fault } : { state };
  };
  for (const [i, from] of [0, ...places].entries()) {
    const piece = Buffer.from(bytes.subarray(from, places[i] ?? bytes.length));
    const state = reader.push(piece);
    if (state !== 'more') return result(state);
    piece.fill('?');
  }
  return result(isEnded ? reader.end() : 'more');
}

type Options = { readonly cuts?: readonly number[]; readonly maxBytes?: number; readonly isEnded?: boolean };

const lines = (...all: string[]): string => all.join('\r\n');
const ok = (...headers: string[]): string => lines('HTTP/1.1 200 OK', ...headers, '', '');
const done = (body: string, isReusable = true): Read => ({ state: 'done', status: 200, date: null, body, isReusable });
const CHUNKED = 'Transfer-Encoding: chunked';

const WHOLE: [string, string, Read][] = [
  ['of a length', ok('Content-Length: 5') + 'hello', done('hello')],
  ['without a body', ok('content-length: 0'), done('')],
  ['in chunks', ok(CHUNKED) + lines('5', 'hello', '1', ' ', '00', '', ''), done('hello ')],
  [
    'in chunks with capitals and extensions',
    ok(CHUNKED) + lines('A;x=1', '0123456789', '0 ;y', '', ''),
    done('0123456789'),
  ],
  ['in chunks with trailers', ok(CHUNKED) + lines('1', 'x', '0', 'A: b', 'C: d', '', ''), done('x')],
  ['with blanks around values', ok('Content-Length: \t 2 ', 'Connection:  Keep-Alive') + 'ab', done('ab')],
  ['that ends its connection', ok('Content-Length: 1', 'Connection: foo, Close ') + 'x', done('x', false)],
  ['of HTTP/1.0', lines('HTTP/1.0 200 OK', 'Content-Length: 1', '', 'x'), done('x', false)],
  ['with more than was asked for', ok('Content-Length: 1') + 'xHTTP/1.1 200 OK\r\n', done('x', false)],
  [
    'with its date',
    ok('Date: Sat, 21 Nov 2026 10:00:00 GMT', 'Content-Length: 0'),
    { ...done(''), date: 'Sat, 21 Nov 2026 10:00:00 GMT' },
  ],
  ['without words for its status', lines('HTTP/1.1 200 ', 'Content-Length: 0', '', ''), done('')],
  ['without even the blank before them', lines('HTTP/1.1 200', 'Content-Length: 0', '', ''), done('')],
  [
    'behind interim ones',
    lines('HTTP/1.1 100 Continue', '', 'HTTP/1.1 103 Early Hints', 'Content-Length: 7', 'Date: x', '', '') +
      ok('Content-Length: 1') +
      'x',
    done('x'),
  ],
  ['204', lines('HTTP/1.1 204 No Content', '', ''), { ...done(''), status: 204 }],
  [
    '304 with a length of what it does not send',
    lines('HTTP/1.1 304 Not Modified', 'Content-Length: 9', '', ''),
    { ...done(''), status: 304 },
  ],
  ['503', lines('HTTP/1.1 503 Service Unavailable', 'Content-Length: 2', '', 'no'), { ...done('no'), status: 503 }],
];

const BROKEN: [string, string, string][] = [
  ['something else', 'SSH-2.0-OpenSSH\r\n\r\n', 'not a response of HTTP/1.1'],
  ['another version', lines('HTTP/2.0 200 OK', '', ''), 'not a response of HTTP/1.1'],
  ['no status', lines('HTTP/1.1 2000 OK', '', ''), 'not a response of HTTP/1.1'],
  ['a switch of protocols', lines('HTTP/1.1 101 Switching Protocols', '', ''), 'protocol switched unasked'],
  ['a header without a colon', ok('Content-Length 5'), 'header not understood'],
  ['a header without a name', ok(': 5'), 'header not understood'],
  ['a blank before a colon', ok('Content-Length : 5'), 'header not understood'],
  ['a folded header', ok('A: b', ' c: d'), 'header not understood'],
  ['a line that ends without CR', ok('A: b\nContent-Length: 5'), 'header not understood'],
  ['a length that is none', ok('Content-Length: 5x'), 'length not understood'],
  ['a negative length', ok('Content-Length: -5'), 'length not understood'],
  ['a length in hexadecimal', ok('Content-Length: 0x5'), 'length not understood'],
  ['no length where one is named', ok('Content-Length:'), 'length not understood'],
  ['a list of lengths', ok('Content-Length: 5, 5'), 'length not understood'],
  ['the same length twice', ok('content-length: 5', 'Content-Length: 5'), 'length not understood'],
  ['two lengths', ok('Content-Length: 5', 'Content-Length: 6'), 'length not understood'],
  ['a stray CR', ok('A: b\rContent-Length: 5'), 'header not understood'],
  ['a control character', ok('A: \0'), 'header not understood'],
  ['another transfer encoding', ok('Transfer-Encoding: gzip, chunked'), 'transfer encoding not understood'],
  ['chunks twice', ok(CHUNKED, CHUNKED), 'transfer encoding not understood'],
  ['a length beside chunks', ok(CHUNKED, 'Content-Length: 5'), 'both a length and chunks announced'],
  ['a size of a chunk that is none', ok(CHUNKED) + 'x\r\n', 'size of a chunk not understood'],
  ['a size with a sign', ok(CHUNKED) + '+5\r\n', 'size of a chunk not understood'],
  ['a chunk longer than announced', ok(CHUNKED) + lines('1', 'xy', '0', '', ''), 'chunk longer than announced'],
  ['a chunk line without CR', ok(CHUNKED) + '1\nx\r\n', 'line of a chunked body without CR LF'],
  ['an endless chunk line', ok(CHUNKED) + '1;' + 'x'.repeat(2000), 'line of a chunked body too long'],
  ['endless trailers', ok(CHUNKED) + '0\r\n' + 'a: b\r\n'.repeat(4000), 'line of a chunked body too long'],
  ['an endless head', 'HTTP/1.1 200 OK\r\n' + 'a: b\r\n'.repeat(4000), 'head of a response above 16384 bytes'],
];

describe('a response', () => {
  test.each(WHOLE)('%s is read whole', (_what, response, expected) => {
    expect(read(response)).toEqual(expected);
  });

  test.each(BROKEN)('that has %s is refused', (_what, response, fault) => {
    expect(read(response)).toEqual({ state: 'broken', fault });
  });

  test('of no announced length ends with its connection', () => {
    const response = ok('Content-Type: text/plain') + 'all of it';
    expect(read(response)).toEqual({ state: 'more' });
    expect(read(response, { isEnded: true })).toEqual(done('all of it', false));
  });

  test('that its connection cuts is refused', () => {
    for (const response of [
      '',
      'HTTP/1.1 200',
      ok('Content-Length: 5') + 'hell',
      ok(CHUNKED) + '5\r\nhello\r\n0\r\n',
    ]) {
      expect(read(response, { isEnded: true })).toMatchObject({ state: 'broken' });
    }
  });

  test('above the limit is given up: by its length at once, otherwise as soon as it is seen', () => {
    const limited = (response: string): Read => read(response, { maxBytes: 10 });
    const tooLarge = (nBytes: number): Read => ({ state: 'too_large', status: 200, nBytes });
    expect(limited(ok('Content-Length: 10') + '0123456789')).toEqual(done('0123456789'));
    expect(limited(ok('Content-Length: 11'))).toEqual(tooLarge(11));
    expect(limited(ok('Content-Length: 999999999999999'))).toEqual(tooLarge(999_999_999_999_999));
    expect(limited(ok(CHUNKED) + '6\r\nabcdef\r\n5\r\n')).toEqual(tooLarge(11));
    expect(limited(ok(CHUNKED) + 'ffffffffffff\r\n')).toEqual(tooLarge(2 ** 48 - 1));
    expect(limited(ok() + '01234567890')).toEqual(tooLarge(11));
  });

  test('cut anywhere, each byte alone included, is the same response', () => {
    for (const [, response] of [...WHOLE, ...BROKEN]) {
      const whole = read(response, { isEnded: true });
      const everywhere = Array.from({ length: response.length }, (_, at) => at);
      // What comes behind the end is seen only where it comes with it.
      const inPieces = read(response, { cuts: everywhere, isEnded: true });
      expect({ ...inPieces, isReusable: null }).toEqual({ ...whole, isReusable: null });
    }
    fc.assert(
      fc.property(
        fc.constantFrom(...WHOLE, ...BROKEN),
        fc.array(fc.nat(300), { maxLength: 5 }),
        ([, response], cuts) => {
          expect({ ...read(response, { cuts }), isReusable: null }).toEqual({ ...read(response), isReusable: null });
        },
      ),
      { numRuns: 1000 },
    );
  });

  test('takes the memory of what came, not of what was announced', () => {
    const reader = new ResponseReader();
    reader.begin(2 ** 40);
    expect(reader.push(Buffer.from(ok('Content-Length: 1000000000000') + 'x'))).toBe('more');
    expect(reader.takeBody().buffer.byteLength).toBeLessThan(100_000);
  });

  test('in pieces takes about as many steps per byte when it is a hundred times as long', () => {
    // Copies, counted: they are what could grow with the square.
    const copied = (n: number): number => {
      const original = Object.getOwnPropertyDescriptor(Buffer.prototype, 'copy')!;
      const copy = original.value as Buffer['copy'];
      let nCopied = 0;
      Buffer.prototype.copy = function (this: Buffer, ...to: Parameters<Buffer['copy']>): number {
        const nBytes = copy.apply(this, to);
        nCopied += nBytes;
        return nBytes;
      };
      try {
        const reader = new ResponseReader();
        reader.begin(1e9);
        reader.push(Buffer.from(ok(CHUNKED)));
        for (let i = 0; i < n; i++) reader.push(Buffer.from('3e8\r\n' + 'x'.repeat(1000) + '\r\n'));
        expect(reader.push(Buffer.from('0\r\n\r\n'))).toBe('done');
        expect(reader.takeBody()).toHaveLength(1000 * n);
      } finally {
        Object.defineProperty(Buffer.prototype, 'copy', original);
      }
      return nCopied / (1000 * n);
    };
    expect(copied(100)).toBeGreaterThanOrEqual(1);
    expect(copied(10_000)).toBeLessThan(4);
  });
});
