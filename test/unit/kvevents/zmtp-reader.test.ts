import { describe, expect, test } from '@jest/globals';
import fc from 'fast-check';
import { createZmtpReader } from '../../../src/kvevents/zmtp-reader.ts';

const MAX = 100_000;
const GREETING = Buffer.concat([
  Buffer.from([0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0x7f, 3, 1]),
  Buffer.from('NULL'.padEnd(20, '\0'), 'latin1'),
  Buffer.alloc(32),
]);

function frame(flags: number, body: Uint8Array, form: 'short' | 'long' = body.length < 256 ? 'short' : 'long'): Buffer {
  if (form === 'short') return Buffer.concat([Buffer.from([flags, body.length]), body]);
  const header = Buffer.alloc(9);
  header[0] = flags | 2;
  header.writeBigUInt64BE(BigInt(body.length), 1);
  return Buffer.concat([header, body]);
}

function command(name: string, body: string | Uint8Array): Buffer {
  return frame(4, Buffer.concat([Buffer.from([name.length]), Buffer.from(name), Buffer.from(body)]));
}

const property = (name: string, value: string): string =>
  String.fromCharCode(name.length) + name + '\0\0\0' + String.fromCharCode(value.length) + value;
const READY = command('READY', property('Socket-Type', 'PUB') + property('Identity', ''));
const message = (...bodies: Uint8Array[]): Buffer =>
  Buffer.concat(bodies.map((body, i) => frame(i < bodies.length - 1 ? 1 : 0, body)));

/** What a reader said of bytes that came in these pieces. */
function read(pieces: readonly Buffer[], turnLength = Infinity): unknown[] {
  const said: unknown[] = [];
  let nInTurn = 0;
  const reader = createZmtpReader(
    {
      onGreeting: () => said.push('greeting'),
      onReady: (socketType) => said.push(socketType),
      onMessage: (frames) => said.push(frames.map((one) => one.toString('hex'))),
      isTurnOver: () => ++nInTurn >= turnLength,
      onPing: (context) => said.push(`ping ${context.toString()}`),
    },
    MAX,
  );
  for (const piece of pieces) {
    // As it is read: into memory that is used again.
    const shared = Buffer.from(piece);
    nInTurn = 0;
    let waits = reader.push(shared);
    shared.fill(0xee);
    while (waits) {
      nInTurn = 0;
      waits = reader.push(Buffer.alloc(0));
    }
  }
  return said;
}

test('greeting, READY, messages of any number of frames, heartbeats, commands nobody knows', () => {
  const bytes = [
    GREETING,
    READY,
    message(Buffer.from('topic'), Buffer.alloc(8, 1), Buffer.alloc(300, 2)),
    command('PING', '\0\x64context'),
    command('NEWS', 'x'),
    // Between the frames of a message, as libzmq does; and a length written longer than it must be.
    Buffer.concat([frame(1, Buffer.from('a')), command('PING', '\0\x01'), frame(0, Buffer.from('b'), 'long')]),
    message(Buffer.alloc(0)),
  ];
  expect(read([Buffer.concat(bytes)])).toEqual([
    'greeting',
    'PUB',
    ['746f706963', '01'.repeat(8), '02'.repeat(300)],
    'ping context',
    'ping ',
    ['61', '62'],
    [''],
  ]);
});

test('however the bytes are cut, and however short the turns are, the same is said', () => {
  const body = fc.oneof(fc.uint8Array({ maxLength: 20 }), fc.uint8Array({ minLength: 250, maxLength: 9000 }));
  const sent = fc.array(fc.oneof(fc.array(body, { minLength: 1, maxLength: 4 }), fc.constant(null)), { maxLength: 12 });
  fc.assert(
    fc.property(sent, fc.array(fc.nat(), { maxLength: 12 }), fc.integer({ min: 1, max: 5 }), (items, cuts, turn) => {
      const parts = items.map((bodies) => (bodies === null ? command('PING', '\0\0x') : message(...bodies)));
      const whole = Buffer.concat([GREETING, READY, ...parts]);
      const at = [0, ...cuts.map((cut) => cut % whole.length).sort((a, b) => a - b), whole.length];
      const pieces = at.slice(1).map((end, i) => whole.subarray(at[i], end));
      const expected = items.map((bodies) =>
        bodies === null ? 'ping x' : bodies.map((one) => Buffer.from(one).toString('hex')),
      );
      expect(read(pieces, turn)).toEqual(['greeting', 'PUB', ...expected]);
    }),
    { numRuns: 150 },
  );
});

describe('what no ZMTP 3 peer sends is refused, whole or byte by byte', () => {
  const header = (...bytes: number[]): Buffer => Buffer.from(bytes);
  test.each<[string, Buffer[], RegExp]>([
    ['another protocol', [Buffer.from('HTTP/1.1 400 Bad Request\r\n\r\n')], /does not begin as ZMTP does/],
    ['an old version', [Buffer.from('ff000000000000000' + '17f01', 'hex')], /ZMTP 1, expected 3/],
    ['another mechanism', [Buffer.from(GREETING.toString('latin1').replace('NULL', 'CURV'), 'latin1')], /CURV/],
    ['a message before READY', [GREETING, message(Buffer.from('x'))], /a message before READY/],
    ['another command before READY', [GREETING, command('PING', '\0\0')], /command "PING", expected READY/],
    ['a refusal', [GREETING, command('ERROR', '\x02no')], /refused by the peer: "no"/],
    [
      'a property that does not end',
      [GREETING, command('READY', '\x0bSocket-Type\0\0\0\x09PUB')],
      /ends inside a prop/,
    ],
    ['flags of another version', [GREETING, READY, header(0x42, 1, 0)], /frame flags 66/],
    ['a frame of 2^62 bytes', [GREETING, READY, header(2, 0x40, 0, 0, 0, 0, 0, 0, 0)], /4611686018427388000 bytes/],
    ['too much in all', [GREETING, READY, frame(1, Buffer.alloc(MAX - 9)), header(0, 1)], /1 bytes in a message/],
    ['a long command', [GREETING, READY, header(6, 0, 0, 0, 0, 0, 0, 0x20, 0)], /8192 bytes in a command/],
    ['frames without end', [GREETING, READY, ...Array.from({ length: 65 }, () => frame(1, header(1)))], /more than 64/],
  ])('%s', (_what, parts, problem) => {
    const whole = Buffer.concat(parts);
    const refused = expect.objectContaining({ code: 'peer_failed', message: expect.stringMatching(problem) });
    expect(() => read([whole])).toThrow(refused as unknown as Error);
    expect(() => read(Array.from(whole, (byte) => Buffer.from([byte])))).toThrow(refused as unknown as Error);
  });

  test('any bytes: refused or waited for, and nothing else', () => {
    fc.assert(
      fc.property(fc.array(fc.uint8Array({ maxLength: 200 }), { maxLength: 5 }), fc.nat(3), (pieces, nWhole) => {
        const begun = [GREETING, READY, frame(1, Buffer.from('x'))].slice(0, nWhole);
        try {
          read([...begun, ...pieces.map((piece) => Buffer.from(piece))]);
        } catch (error) {
          expect(error).toMatchObject({ code: 'peer_failed' });
        }
      }),
      { numRuns: 500 },
    );
  });
});
