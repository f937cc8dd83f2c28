/**
 * Conversations of a real Envoy 1.40.0 replayed byte for byte: its messages go in, our answers are compared with the
 * recorded server's by meaning. Origin and shape: test/fixtures/ext-proc-recordings/README.md.
 */
import { readdirSync, readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { describe, expect, test } from '@jest/globals';
import { readMessage } from '../../../src/extproc/message-reader.ts';
import { aPickError, createHarness, createHeld, type Harness, type Held } from '../../support/exchange-harness.ts';
import { decodeAnswer, type Answer } from '../../support/extproc-messages.ts';

type Entry = { from: 'envoy' | 'server'; hex: string };
type Case = { name: string; conversation: Entry[]; stream_end: { events: string[] } };
type Recording = { doc: string; cases: Case[] };

const FIXTURES = fileURLToPath(new URL('../../fixtures/ext-proc-recordings/', import.meta.url));
const files = readdirSync(FIXTURES).filter((name) => name.endsWith('.json'));

/**
 * Cases in which the recording server did what ours never does (on purpose, or because it was told to at the headers), so
 * that only the kinds of our own answers can be said: by mode of the recording.
 */
const OWN_KINDS: Readonly<Record<string, Readonly<Record<'buffered' | 'fds' | 'none', readonly string[]>>>> = {
  'clean-end-bypass': {
    buffered: ['request_headers', 'request_body'],
    fds: ['request_headers', 'request_body'],
    none: ['request_headers'],
  },
  'status-13': {
    buffered: ['request_headers', 'request_body'],
    fds: ['request_headers', 'request_body'],
    none: ['request_headers'],
  },
  // We know no reason to refuse before the body is there.
  'immediate-429-at-headers': {
    buffered: ['request_headers'],
    fds: ['immediate_response'],
    none: ['immediate_response'],
  },
  'immediate-503-at-body': {
    buffered: ['request_headers', 'immediate_response'],
    fds: ['immediate_response'],
    none: ['request_headers'],
  },
  // We never wait at the headers of a buffered request.
  'timeout-at-headers': { buffered: ['request_headers'], fds: [], none: [] },
};
const DEFAULT_POD = '127.0.0.2:21800';

/** An answer without what is free to differ: pieces of an echo are joined, texts of a refusal are ours. */
function meaning(answers: readonly Answer[]): unknown[] {
  const joined: Meaning[] = [];
  for (const answer of answers) {
    if (answer.kind === 'none') continue;
    const last = joined.at(-1);
    if (answer.echo !== null && last?.kind === answer.kind && last.echoed !== null) {
      last.echoed += answer.echo.body.toString('latin1');
      last.nEndOfStream += answer.echo.endOfStream ? 1 : 0;
      continue;
    }
    joined.push({
      kind: answer.kind,
      destination: answer.set['x-gateway-destination-endpoint'] ?? null,
      metadata: answer.metadata,
      status: answer.immediate?.status ?? null,
      echoed: answer.echo?.body.toString('latin1') ?? null,
      nEndOfStream: answer.echo?.endOfStream ? 1 : 0,
    });
  }
  return joined;
}

type Meaning = {
  kind: string;
  destination: string | null;
  metadata: string | null;
  status: string | number | null;
  echoed: string | null;
  nEndOfStream: number;
};

function replay(recorded: Case): { h: Harness; held: Held } {
  const h = createHarness();
  const { fate, reservation } = createHeld();
  const theirs = recorded.conversation.filter(({ from }) => from === 'server').map(({ hex }) => decodeHex(hex));
  const refusal = theirs.find(({ immediate }) => immediate !== null);
  const decides = recorded.name in OWN_KINDS || theirs.some(({ metadata }) => metadata !== null);
  let nDecided = 0;
  for (const { from, hex } of recorded.conversation) {
    if (from === 'server') continue;
    h.exchange.message(readMessage(Buffer.from(hex, 'hex')));
    if (h.picks.length === nDecided) continue;
    nDecided += 1;
    const wanted = h.picks[0]!.request.header('x-want')?.split(',') ?? [DEFAULT_POD];
    if (refusal)
      h.exchange.decided(aPickError({ status: refusal.immediate!.status === 'TooManyRequests' ? 429 : 503 }));
    else if (decides) h.exchange.decided({ kind: 'routed', endpoints: wanted, reservation });
  }
  for (const event of recorded.stream_end.events) {
    if (event.startsWith('end ')) h.exchange.halfClosed();
    if (event.startsWith('cancelled ') || event.startsWith('close ')) h.exchange.cancelled();
  }
  return { h, held: fate };
}

function decodeHex(hex: string): Answer {
  return decodeAnswer(Buffer.from(hex, 'hex'));
}

describe.each(files)('%s', (file) => {
  const { cases } = JSON.parse(readFileSync(FIXTURES + file, 'utf8')) as Recording;

  test.each(cases.map((recorded) => [recorded.name, recorded] as const))('%s', (name, recorded) => {
    const { h, held } = replay(recorded);
    const theirs = recorded.conversation.filter(({ from }) => from === 'server').map(({ hex }) => decodeHex(hex));
    const ownKinds = OWN_KINDS[name]?.[file.startsWith('fds') ? 'fds' : file.startsWith('none') ? 'none' : 'buffered'];
    if (ownKinds !== undefined) expect(h.answers.map(({ kind }) => kind)).toEqual(ownKinds);
    else expect(meaning(h.answers)).toEqual(meaning(theirs));
    expect(h.results).toHaveLength(1);
    const routed = h.results[0]!.endpoint !== null;
    expect(held.released).toHaveLength(routed ? 1 : 0);
    expect(h.clock.nTimers()).toBe(0);
  });
});

test('the recordings are all there', () => {
  expect(files).toHaveLength(9);
});

test('the hint and the served endpoint of the data plane are read', () => {
  const { cases } = JSON.parse(readFileSync(`${FIXTURES}attributes-metadata.json`, 'utf8')) as Recording;
  const { h } = replay(cases.find(({ name }) => name === 'subset-hint-and-served')!);
  expect(h.picks[0]!.request.subset.kind).toBe('only');
  expect(h.results[0]!.served).toBe(h.results[0]!.endpoint);
});
