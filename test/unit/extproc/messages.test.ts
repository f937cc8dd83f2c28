/** What goes over the wire, read by a scanner of our own that shares nothing with the encoder. */
import { describe, expect, test } from '@jest/globals';
import { continueResponse, echoResponse, immediateResponse, withTrailersWanted } from '../../../src/extproc/answers.ts';
import { readMessage } from '../../../src/extproc/message-reader.ts';
import type { MessageKind } from '../../../src/extproc/messages.ts';
import { destinationValue, reasonWord, subsetOf } from '../../../src/extproc/protocol.ts';
import { aPickError } from '../../support/exchange-harness.ts';
import { encodeRequest, requestHeaders } from '../../support/extproc-messages.ts';

/** Field number → raw values, for one message without groups and fixed-width fields. */
function scan(bytes: Buffer): Map<number, (Buffer | number)[]> {
  const fields = new Map<number, (Buffer | number)[]>();
  let at = 0;
  const varint = (): number => {
    let value = 0;
    for (let shift = 0; ; shift += 7) {
      const byte = bytes[at++]!;
      value += (byte & 0x7f) * 2 ** shift;
      if (byte < 0x80) return value;
    }
  };
  while (at < bytes.length) {
    const tag = varint();
    let value: Buffer | number;
    if ((tag & 7) === 0) value = varint();
    else if ((tag & 7) === 2) {
      const length = varint();
      value = bytes.subarray(at, at + length);
      at += length;
    } else throw new Error(`wire type ${tag & 7}`);
    fields.set(tag >> 3, [...(fields.get(tag >> 3) ?? []), value]);
  }
  return fields;
}
const sub = (fields: Map<number, (Buffer | number)[]>, ...path: number[]): Map<number, (Buffer | number)[]> =>
  path.reduce((at, field) => scan(at.get(field)![0] as Buffer), fields);

describe('answers on the wire', () => {
  const change = { set: [['x-gateway-destination-endpoint', '10.0.0.1:80'] as const], remove: ['target-pod'] };

  test.each<[MessageKind, number]>([
    ['request_headers', 1],
    ['response_headers', 2],
    ['request_body', 3],
    ['response_body', 4],
    ['request_trailers', 5],
    ['response_trailers', 6],
  ])('a plain "continue" to %s is field %i and never empty: Envoy calls an empty answer spurious', (kind, field) => {
    const bytes = continueResponse(kind);
    expect(bytes.length).toBeGreaterThan(0);
    expect([...scan(bytes).keys()]).toEqual([field]);
  });

  test('a header is written as raw_value, overwrites by append_action, and leaves value and append alone', () => {
    const mutation = sub(scan(continueResponse('request_body', change)), 3, 1, 2);
    const option = scan(mutation.get(1)![0] as Buffer);
    expect([...option.keys()].sort()).toEqual([1, 3]);
    expect(option.get(3)).toEqual([2]);
    const header = sub(option, 1);
    expect([...header.keys()].sort()).toEqual([1, 3]);
    expect(String(header.get(1)![0])).toBe('x-gateway-destination-endpoint');
    expect(String(header.get(3)![0])).toBe('10.0.0.1:80');
    expect(mutation.get(2)!.map(String)).toEqual(['target-pod']);
  });

  test('dynamic metadata is a struct of a struct of a string', () => {
    const entry = sub(scan(continueResponse('request_headers', change, '10.0.0.1:80')), 8, 1);
    expect(String(entry.get(1)![0])).toBe('envoy.lb');
    const inner = sub(entry, 2, 5, 1);
    expect(String(inner.get(1)![0])).toBe('x-gateway-destination-endpoint');
    expect(String(sub(inner, 2).get(3)![0])).toBe('10.0.0.1:80');
  });

  test('an echo is a streamed_response with the very bytes', () => {
    const body = Buffer.from([0, 255, 10, 13]);
    const streamed = sub(scan(echoResponse('request_body', body, true)), 3, 1, 3, 3);
    expect(streamed.get(1)).toEqual([body]);
    expect(streamed.get(2)).toEqual([1]);
  });

  test('an override spells out both body modes', () => {
    const answer = withTrailersWanted(continueResponse('request_headers'), 'BUFFERED', 'STREAMED');
    const mode = sub(scan(answer), 9);
    expect([...mode.entries()].sort(([a], [b]) => a - b)).toEqual([
      [3, [2]],
      [4, [1]],
      [6, [1]],
    ]);
  });

  test('a refusal has the status number, its headers, the body and the details', () => {
    const member = sub(scan(immediateResponse(aPickError({ status: 429, retryAfterSeconds: 1.2 }))), 7);
    expect(sub(member, 1).get(1)).toEqual([429]);
    const set = sub(member, 2)
      .get(1)!
      .map((option) => sub(scan(option as Buffer), 1))
      .map((header) => [String(header.get(1)![0]), String(header.get(3)![0])]);
    expect(set).toEqual([
      ['content-type', 'application/json'],
      ['x-warmpath-reason', 'no_endpoint'],
      ['retry-after', '2'],
    ]);
    expect(JSON.parse(String(member.get(3)![0]))).toHaveProperty('error.message');
    expect(String(member.get(5)![0])).toBe('warmpath_no_endpoint');
  });
});

describe('what Envoy sends', () => {
  const read = (message: object) => readMessage(encodeRequest(message as Record<string, unknown>));

  test('header names in any case and values in either field are understood, the first value counts', () => {
    const message = read({
      request_headers: {
        headers: {
          headers: [
            { key: 'X-Session-ID', value: 'from value' },
            { key: 'x-session-id', raw_value: Buffer.from('second') },
            { key: ':path', value: 'ignored', raw_value: Buffer.from('/naïve') },
            { key: 'empty' },
          ],
        },
      },
    });
    if (message.kind !== 'request_headers') throw new Error(message.kind);
    expect(message.headers.get('x-session-id')).toBe('from value');
    expect(message.headers.get(':path')).toBe('/naïve');
    expect(message.headers.get('empty')).toBe('');
    expect(message.headers.get('absent')).toBeUndefined();
    expect(message.headers.count).toBe(4);
  });

  test('body bytes are a view of the message, not a copy', () => {
    const wire = encodeRequest({ request_body: { body: Buffer.from('hello'), end_of_stream: true } });
    const message = readMessage(wire);
    if (message.kind !== 'request_body') throw new Error(message.kind);
    expect(Buffer.from(message.body).toString()).toBe('hello');
    expect(message.body.buffer).toBe(wire.buffer);
  });

  test('fields of later Envoys are skipped', () => {
    const unknown = Buffer.from([0x62, 0x02, 0x08, 0x01, 0x6a, 0x00]);
    const message = readMessage(Buffer.concat([encodeRequest(requestHeaders()), unknown]));
    expect(message.kind).toBe('request_headers');
    expect(readMessage(unknown).kind).toBe('unknown');
  });

  test('an absent protocol_config is told apart from one that says NONE', () => {
    expect(read({ request_headers: {} }).protocolConfig).toBeNull();
    expect(read({ request_headers: {}, protocol_config: {} }).protocolConfig).toEqual({
      requestBodyMode: 'NONE',
      responseBodyMode: 'NONE',
      sendBodyWithoutWaiting: false,
    });
  });
});

describe('words', () => {
  test.each([
    [['10.0.0.1:8000'], '10.0.0.1:8000'],
    [['10.0.0.1:8000', '[fd00::1]:80'], '10.0.0.1:8000,[fd00::1]:80'],
    [[], null],
    [['10.0.0.1:8000', 'pod.local:80'], null],
    [['fd00::1:80'], null],
    [['10.0.0.1:8000\n'], null],
  ])('endpoints %j become %j', (endpoints, value) => {
    expect(destinationValue(endpoints)).toBe(value);
  });

  test('a hint keeps its order and drops blanks', () => {
    expect(subsetOf(['b:1 ,, a:1', ' c:1'])).toEqual({ kind: 'only', addresses: ['b:1', 'a:1', 'c:1'] });
  });

  test.each([
    ['no_endpoint', 'no_endpoint'],
    ['No', 'unspecified'],
    ['', 'unspecified'],
    ['a\nb', 'unspecified'],
  ])('reason %j is said as %j', (reason, word) => {
    expect(reasonWord(reason)).toBe(word);
  });
});
