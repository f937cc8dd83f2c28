import { describe, expect, test } from '@jest/globals';
import { readMessage } from '../../../src/extproc/message-reader.ts';
import type { BodySendMode } from '../../../src/extproc/messages.ts';
import { aPickError, createHarness, createHeld, type Harness } from '../../support/exchange-harness.ts';
import {
  announced,
  encodeRequest,
  hint,
  requestBody,
  requestHeaders,
  requestTrailers,
  responseBody,
  responseHeaders,
  responseTrailers,
  servedBy,
  type Answer,
} from '../../support/extproc-messages.ts';

const POD = '192.168.1.1:8000';
const FALLBACK = '192.168.1.2:8000';
const DESTINATION = 'x-gateway-destination-endpoint';
const BODY = '{"model":"m","messages":[{"role":"user","content":"Hello"}]}';

const kinds = (answers: readonly { kind: string }[]): string[] => answers.map(({ kind }) => kind);

describe('BUFFERED', () => {
  test('headers are acknowledged at once, the body answer carries the destination as header and metadata', () => {
    const h = createHarness();
    h.envoy(requestHeaders(), announced('BUFFERED'));
    expect(h.take()).toMatchObject([{ kind: 'request_headers', set: {}, remove: [], metadata: null }]);
    expect(h.picks).toHaveLength(0);
    h.envoy(requestBody(BODY));
    expect(h.take()).toEqual([]);
    const { request } = h.picks[0]!;
    expect(Buffer.from(request.body!).toString()).toBe(BODY);
    expect([request.method, request.path, request.bodyTruncated]).toEqual(['POST', '/v1/chat/completions', false]);
    h.route(POD, '192.168.1.2:8000');
    const value = `${POD},192.168.1.2:8000`;
    expect(h.take()).toMatchObject([
      { kind: 'request_body', set: { [DESTINATION]: value }, metadata: value, echo: null },
    ]);
    expect(h.ended()).toBeNull();
  });

  test('a body message without end of stream is whole: trailers follow and are answered', () => {
    const h = createHarness();
    h.envoy(requestHeaders(), announced('BUFFERED'));
    h.envoy(requestBody(BODY, 'more'));
    expect(h.picks[0]!.request.bodyTruncated).toBe(false);
    h.route(POD);
    h.envoy(requestTrailers());
    expect(kinds(h.answers)).toEqual(['request_headers', 'request_body', 'request_trailers']);
    expect(h.answers[1]!.metadata).toBe(POD);
  });

  test('an empty chunked body is asked about as an empty body', () => {
    const h = createHarness();
    h.envoy(requestHeaders(), announced('BUFFERED'));
    h.envoy(requestBody(''));
    expect(h.picks[0]!.request.body).toHaveLength(0);
    h.exchange.decided(aPickError({ status: 400, reason: 'body_empty' }));
    expect(kinds(h.answers)).toEqual(['request_headers', 'immediate_response']);
  });

  test('trailers without a body message are the end of the request, and carry the choice as metadata', () => {
    const h = createHarness();
    h.envoy(requestHeaders(), announced('BUFFERED'));
    h.envoy(requestTrailers());
    h.route(POD);
    expect(h.answers).toMatchObject([
      { kind: 'request_headers' },
      { kind: 'request_trailers', metadata: POD, set: {} },
    ]);
  });

  test('without request headers (mode SKIP) the body answer carries everything', () => {
    const h = createHarness();
    h.envoy(requestBody(BODY), announced('BUFFERED'));
    expect(h.picks[0]!.request).toMatchObject({ method: '', path: '' });
    h.route(POD);
    expect(h.answers).toMatchObject([{ kind: 'request_body', set: { [DESTINATION]: POD }, metadata: POD }]);
  });

  test('a second body message breaks the order', () => {
    const h = createHarness();
    h.envoy(requestHeaders(), announced('BUFFERED'));
    h.envoy(requestBody(BODY));
    h.route(POD);
    h.envoy(requestBody(BODY));
    expect(h.ended()).toBe('FAILED_PRECONDITION');
    expect(h.results).toMatchObject([{ reason: 'illegal_message_order', ending: 'failed' }]);
  });
});

describe('BUFFERED_PARTIAL', () => {
  test('a cut body is decided on what came, and marked as cut', () => {
    const h = createHarness();
    h.envoy(requestHeaders({ headers: { 'content-length': '99999999' } }), announced('BUFFERED_PARTIAL'));
    h.envoy(requestBody(BODY.slice(0, 20), 'more'));
    expect(h.picks[0]!.request.bodyTruncated).toBe(true);
    h.route(POD);
    expect(h.answers).toMatchObject([{ kind: 'request_headers' }, { kind: 'request_body', metadata: POD }]);
  });

  test('a cut body over the cap is cut further, a whole one is refused', () => {
    const cut = createHarness({ bodyMaxBytes: 10 });
    cut.envoy(requestHeaders(), announced('BUFFERED_PARTIAL'));
    cut.envoy(requestBody('x'.repeat(11), 'more'));
    expect(cut.picks[0]!.request).toMatchObject({ bodyTruncated: true });
    expect(cut.picks[0]!.request.body).toHaveLength(10);
    const whole = createHarness({ bodyMaxBytes: 10 });
    whole.envoy(requestHeaders(), announced('BUFFERED_PARTIAL'));
    whole.envoy(requestBody('x'.repeat(11)));
    expect(whole.answers[1]!.immediate!.status).toBe('PayloadTooLarge');
  });
});

describe('headers only', () => {
  test.each<BodySendMode>(['NONE', 'BUFFERED', 'BUFFERED_PARTIAL', 'STREAMED', 'FULL_DUPLEX_STREAMED'])(
    'a request without a body is decided and answered at its headers in %s',
    (mode) => {
      const h = createHarness();
      h.envoy(
        requestHeaders({ headers: { ':method': 'GET', ':path': '/v1/models' }, endOfStream: true }),
        announced(mode),
      );
      expect(h.picks[0]!.request).toMatchObject({ method: 'GET', path: '/v1/models', body: { length: 0 } });
      h.route(POD);
      expect(h.answers).toMatchObject([{ kind: 'request_headers', set: { [DESTINATION]: POD }, metadata: POD }]);
    },
  );

  test('NONE decides at the headers although a body will flow past, and answers trailers', () => {
    const h = createHarness();
    h.envoy(requestHeaders(), announced('NONE'));
    expect(h.picks[0]!.request.body).toBeNull();
    h.route(POD);
    h.envoy(requestTrailers());
    expect(kinds(h.answers)).toEqual(['request_headers', 'request_trailers']);
  });

  test('a body message in NONE breaks the order', () => {
    const h = createHarness();
    h.envoy(requestHeaders(), announced('NONE'));
    h.route(POD);
    h.envoy(requestBody('x'));
    expect(h.ended()).toBe('FAILED_PRECONDITION');
  });
});

describe('FULL_DUPLEX_STREAMED', () => {
  test('one chunk: headers with the destination first, then the identical bytes with end of stream', () => {
    const h = createHarness();
    h.envoy(requestHeaders(), announced('FULL_DUPLEX_STREAMED'));
    h.envoy(requestBody(BODY));
    expect(h.take()).toEqual([]);
    h.route(POD);
    const [first, second, ...rest] = h.take();
    expect(first).toMatchObject({ kind: 'request_headers', set: { [DESTINATION]: POD }, metadata: POD });
    expect(second).toMatchObject({ kind: 'request_body', set: {}, metadata: null, echo: { endOfStream: true } });
    expect(second!.echo!.body.toString()).toBe(BODY);
    expect(rest).toEqual([]);
  });

  test('three chunks: silence until the last, then pieces of at most 62,000 bytes that join to the input', () => {
    const h = createHarness();
    const parts = [Buffer.alloc(70_000, 'a'), Buffer.alloc(70_001, 'b'), Buffer.alloc(9, 'c')];
    h.envoy(requestHeaders(), announced('FULL_DUPLEX_STREAMED'));
    h.envoy(requestBody(parts[0]!, 'more'));
    h.envoy(requestBody(parts[1]!, 'more'));
    h.clock.advance(10_000);
    expect(h.answers).toEqual([]);
    h.envoy(requestBody(parts[2]!));
    expect(Buffer.from(h.picks[0]!.request.body!).equals(Buffer.concat(parts))).toBe(true);
    h.route(POD);
    const echoes = h.answers.slice(1).map(({ echo }) => echo!);
    expect(Buffer.concat(echoes.map(({ body }) => body)).equals(Buffer.concat(parts))).toBe(true);
    expect(Math.max(...echoes.map(({ body }) => body.length))).toBeLessThanOrEqual(62_000);
    expect(echoes.map(({ endOfStream }) => endOfStream)).toEqual([false, false, true]);
  });

  test('a body of 220 KB in 62 KB chunks, cut inside its strings, is one decision on the whole', () => {
    const h = createHarness();
    const body = Buffer.from(JSON.stringify({ model: 'm', prompt: 'é'.repeat(110_000) }));
    h.envoy(requestHeaders(), announced('FULL_DUPLEX_STREAMED'));
    for (let at = 0; at < body.length; at += 62_001) {
      h.envoy(requestBody(body.subarray(at, at + 62_001), at + 62_001 < body.length ? 'more' : 'eos'));
    }
    expect(h.picks.map(({ request }) => body.equals(Buffer.from(request.body!)))).toEqual([true]);
    h.route(POD);
    expect(Buffer.concat(h.answers.flatMap(({ echo }) => (echo ? [echo.body] : []))).equals(body)).toBe(true);
    expect(h.results).toEqual([]);
  });

  test('trailers end the body: no piece says end of stream, the trailers are answered', () => {
    const h = createHarness();
    h.envoy(requestHeaders(), announced('FULL_DUPLEX_STREAMED'));
    h.envoy(requestBody('ab', 'more'));
    h.envoy(requestBody('cd', 'more'));
    h.envoy(requestTrailers());
    h.route(POD);
    expect(h.answers).toMatchObject([
      { kind: 'request_headers', metadata: POD },
      { kind: 'request_body', echo: { endOfStream: false } },
      { kind: 'request_trailers' },
    ]);
    expect(h.answers[1]!.echo!.body.toString()).toBe('abcd');
  });

  test('trailers after headers alone: nothing to give back but the trailers', () => {
    const h = createHarness();
    h.envoy(requestHeaders(), announced('FULL_DUPLEX_STREAMED'));
    h.envoy(requestTrailers());
    h.route(POD);
    expect(kinds(h.answers)).toEqual(['request_headers', 'request_trailers']);
  });

  test('an empty last chunk: the bytes come back with exactly one end of stream', () => {
    const h = createHarness();
    h.envoy(requestHeaders(), announced('FULL_DUPLEX_STREAMED'));
    h.envoy(requestBody(BODY, 'more'));
    h.envoy(requestBody(''));
    h.route(POD);
    expect(h.answers.filter(({ echo }) => echo?.endOfStream)).toHaveLength(1);
    expect(h.answers.map(({ echo }) => echo?.body.toString() ?? '').join('')).toBe(BODY);
  });

  test('an empty body comes back as one empty end of stream', () => {
    const h = createHarness();
    h.envoy(requestHeaders(), announced('FULL_DUPLEX_STREAMED'));
    h.envoy(requestBody(''));
    h.route(POD);
    expect(h.answers).toMatchObject([
      { kind: 'request_headers' },
      { kind: 'request_body', echo: { endOfStream: true } },
    ]);
  });

  test.each(['before', 'after'] as const)('a repeated end of stream %s the decision changes nothing', (when) => {
    const h = createHarness();
    h.envoy(requestHeaders(), announced('FULL_DUPLEX_STREAMED'));
    h.envoy(requestBody(BODY));
    if (when === 'before') h.envoy(requestBody(BODY));
    h.route(POD);
    if (when === 'after') h.envoy(requestBody(''));
    expect(kinds(h.answers)).toEqual(['request_headers', 'request_body']);
    expect(h.picks).toHaveLength(1);
    expect(h.ended()).toBeNull();
  });

  test('without request headers the first piece carries the metadata, and no other', () => {
    const h = createHarness();
    h.envoy(requestBody(Buffer.alloc(70_000)), announced('FULL_DUPLEX_STREAMED'));
    h.route(POD);
    expect(h.answers.map(({ kind, metadata }) => [kind, metadata])).toEqual([
      ['request_body', POD],
      ['request_body', null],
    ]);
  });
});

describe('STREAMED', () => {
  test('is decided at the headers without the body, one plain answer per chunk', () => {
    const h = createHarness();
    h.envoy(requestHeaders(), announced('STREAMED'));
    expect(h.picks[0]!.request.body).toBeNull();
    h.route(POD);
    for (const end of ['more', 'more', 'eos'] as const) h.envoy(requestBody('x', end));
    expect(kinds(h.answers)).toEqual(['request_headers', 'request_body', 'request_body', 'request_body']);
    expect(h.answers.every(({ echo }) => echo === null)).toBe(true);
    h.exchange.halfClosed();
    expect(h.results).toMatchObject([{ mode: 'STREAMED', outcome: 'routed' }]);
  });

  test('chunks that come before the decision are answered after the headers', () => {
    const h = createHarness();
    h.envoy(requestHeaders(), announced('STREAMED'));
    h.envoy(requestBody('x', 'more'));
    h.envoy(requestBody('y'));
    expect(h.answers).toEqual([]);
    h.route(POD);
    expect(kinds(h.answers)).toEqual(['request_headers', 'request_body', 'request_body']);
  });

  test('with send_body_without_waiting the headers answer waits for the whole body, then one answer per chunk', () => {
    const h = createHarness();
    h.envoy(requestHeaders(), announced('STREAMED', { withoutWaiting: true }));
    h.envoy(requestBody(BODY.slice(0, 9), 'more'));
    expect(h.picks).toHaveLength(0);
    h.envoy(requestBody(BODY.slice(9)));
    expect(Buffer.from(h.picks[0]!.request.body!).toString()).toBe(BODY);
    h.route(POD);
    expect(h.answers.map(({ kind, metadata, echo }) => [kind, metadata, echo])).toEqual([
      ['request_headers', POD, null],
      ['request_body', null, null],
      ['request_body', null, null],
    ]);
  });

  test('with send_body_without_waiting trailers end the body too, and every message gets its answer', () => {
    const h = createHarness();
    h.envoy(requestHeaders(), announced('STREAMED', { withoutWaiting: true }));
    h.envoy(requestBody('ab', 'more'));
    h.envoy(requestTrailers());
    h.route(POD);
    expect(kinds(h.answers)).toEqual(['request_headers', 'request_body', 'request_trailers']);
  });

  test('with send_body_without_waiting and no headers the first body answer carries the choice', () => {
    const h = createHarness();
    h.envoy(requestBody('ab', 'more'), announced('STREAMED', { withoutWaiting: true }));
    h.envoy(requestBody('cd'));
    h.route(POD);
    expect(h.answers.map(({ kind, metadata }) => [kind, metadata])).toEqual([
      ['request_body', POD],
      ['request_body', null],
    ]);
  });
});

describe('which mode', () => {
  test('GRPC bodies are refused with INVALID_ARGUMENT', () => {
    const h = createHarness();
    h.envoy(requestHeaders(), announced('GRPC'));
    expect(h.ended()).toBe('INVALID_ARGUMENT');
    expect(h.results).toMatchObject([{ outcome: 'error', reason: 'body_mode_refused' }]);
  });

  test('a mode Envoy may add later is refused the same way', () => {
    const h = createHarness();
    h.envoy(requestHeaders(), { protocol_config: { request_body_mode: 9 } });
    expect(h.ended()).toBe('INVALID_ARGUMENT');
  });

  test('an old Envoy that announces nothing gets the configured mode', () => {
    const fds = createHarness({ defaultBodyMode: 'FULL_DUPLEX_STREAMED' });
    fds.envoy(requestHeaders());
    fds.envoy(requestBody(BODY));
    fds.route(POD);
    expect(fds.answers[1]!.echo).not.toBeNull();
    const buffered = createHarness();
    buffered.envoy(requestHeaders());
    expect(kinds(buffered.answers)).toEqual(['request_headers']);
  });

  test('with an assumed mode a surplus body message is answered, not refused', () => {
    const h = createHarness();
    h.envoy(requestHeaders());
    h.envoy(requestBody('a', 'more'));
    h.envoy(requestBody('b'));
    h.route(POD);
    expect(kinds(h.answers)).toEqual(['request_headers', 'request_body', 'request_body']);
    expect(h.ended()).toBeNull();
  });

  test('an observing filter is never answered; its usage and request id are reported', () => {
    const usage = { promptTokens: 5, completionTokens: 2, cachedTokens: 4 };
    const h = createHarness({}, () => ({ push: () => undefined, result: () => usage }));
    const observe = { observability_mode: true };
    h.envoy(requestHeaders({ headers: { 'x-request-id': 'r-1' } }), observe);
    h.envoy(responseHeaders(), observe);
    h.envoy(responseBody('{}'), observe);
    h.exchange.cancelled();
    expect(h.answers).toEqual([]);
    expect(h.picks).toEqual([]);
    expect(h.results).toMatchObject([{ outcome: 'observed', mode: 'observability', requestId: 'r-1', usage }]);
  });

  test.each([
    ['NONE', 'NONE'],
    ['STREAMED', 'STREAMED'],
    ['BUFFERED', 'STREAMED'],
    ['BUFFERED_PARTIAL', 'STREAMED'],
  ] as const)(
    'under a configuration that cannot say so, response trailers are asked for with every mode spelt out: %s answers as %s',
    (announcedMode, wanted) => {
      const h = createHarness({ responseTrailers: 'ask' });
      h.envoy(requestHeaders(), announced('BUFFERED', { responseBody: announcedMode }));
      h.envoy(requestBody(BODY));
      h.route(POD);
      expect(h.answers.map(({ modeOverride }) => modeOverride)).toEqual([
        { request_body_mode: 'BUFFERED', response_body_mode: wanted, response_trailer_mode: 'SEND' },
        null,
      ]);
    },
  );

  test.each([
    ['FULL_DUPLEX_STREAMED', {}],
    ['STREAMED', { withoutWaiting: true }],
    ['BUFFERED', { responseBody: 'FULL_DUPLEX_STREAMED' }],
  ] as const)('no override where Envoy takes none: %s %j', (mode, more) => {
    const h = createHarness({ responseTrailers: 'ask' });
    h.envoy(requestHeaders({ endOfStream: true }), announced(mode, more));
    h.route(POD);
    expect(h.answers[0]!.modeOverride).toBeNull();
  });
});

describe('refusals', () => {
  test.each([
    [400, 'BadRequest', 'bad_request', 'body_not_json', null],
    [404, 'NotFound', 'unknown_model', 'model_not_found', null],
    [429, 'TooManyRequests', 'shed', 'shed', 7],
    [503, 'ServiceUnavailable', 'no_endpoint', 'no_endpoint', 1],
  ] as const)(
    '%i is an immediate response an OpenAI client parses',
    (status, name, outcome, reason, retryAfterSeconds) => {
      const h = createHarness();
      h.envoy(requestHeaders(), announced('BUFFERED'));
      h.envoy(requestBody('nonsense'));
      h.exchange.decided(
        aPickError({ status, reason, retryAfterSeconds, type: 't', code: 'c', param: 'p', message: 'says "why"' }),
      );
      expect(h.take()[1]).toMatchObject({
        kind: 'immediate_response',
        set: {
          'content-type': 'application/json',
          'x-warmpath-reason': reason,
          ...(retryAfterSeconds === null ? {} : { 'retry-after': String(retryAfterSeconds) }),
        },
        immediate: {
          status: name,
          body: { error: { message: 'says "why"', type: 't', code: 'c', param: 'p' } },
          details: `warmpath_${reason}`,
        },
      });
      expect(h.ended()).toBe('ok');
      expect(h.results).toMatchObject([{ outcome, reason, ending: 'refused' }]);
      h.envoy(requestBody('late'));
      h.exchange.cancelled();
      expect(h.take()).toEqual([]);
      expect(h.results).toHaveLength(1);
    },
  );

  test('a reason that could inject a header is replaced', () => {
    const h = createHarness();
    h.envoy(requestHeaders({ endOfStream: true }), announced('NONE'));
    h.exchange.decided(aPickError({ reason: 'x\r\nset-cookie: a' }));
    expect(h.answers[0]!.set['x-warmpath-reason']).toBe('unspecified');
    expect(h.answers[0]!.immediate!.details).toBe('warmpath_unspecified');
  });

  test.each(['BUFFERED', 'FULL_DUPLEX_STREAMED'] as const)(
    'a declared length over the cap gets 413 before a byte of the body in %s',
    (mode) => {
      const h = createHarness({ bodyMaxBytes: 1000 });
      h.envoy(requestHeaders({ headers: { 'content-length': '1001' } }), announced(mode));
      expect(h.answers[0]!.immediate!.status).toBe('PayloadTooLarge');
      expect(h.results).toMatchObject([{ outcome: 'too_large', reason: 'body_too_large' }]);
    },
  );

  test('BUFFERED: one message over the cap gets 413 and is not decided', () => {
    const h = createHarness({ bodyMaxBytes: 10 });
    h.envoy(requestHeaders(), announced('BUFFERED'));
    h.envoy(requestBody('x'.repeat(11)));
    expect(h.answers[1]!.immediate!.status).toBe('PayloadTooLarge');
    expect(h.picks).toHaveLength(0);
  });

  test('FULL_DUPLEX_STREAMED: the chunk that crosses the cap gets 413, exactly the cap passes', () => {
    const over = createHarness({ bodyMaxBytes: 10 });
    over.envoy(requestHeaders(), announced('FULL_DUPLEX_STREAMED'));
    over.envoy(requestBody('x'.repeat(6), 'more'));
    expect(over.answers).toEqual([]);
    over.envoy(requestBody('x'.repeat(5), 'more'));
    expect(over.answers[0]!.immediate!.status).toBe('PayloadTooLarge');
    expect(over.ended()).toBe('ok');
    const exact = createHarness({ bodyMaxBytes: 10 });
    exact.envoy(requestHeaders(), announced('FULL_DUPLEX_STREAMED'));
    exact.envoy(requestBody('x'.repeat(10)));
    expect(exact.picks).toHaveLength(1);
  });

  test.each([
    [{ maxHeaders: 5 }, {}],
    [{ maxHeaderBytes: 300 }, { 'x-long': 'y'.repeat(300) }],
  ])('headers over a limit get 400: %j', (limits, headers) => {
    const h = createHarness(limits);
    h.envoy(requestHeaders({ headers }), announced('BUFFERED'));
    expect(h.answers[0]!.immediate).toMatchObject({ status: 'BadRequest', details: 'warmpath_headers_too_large' });
    expect(h.answers[0]!.immediate!.body.error.message).toMatch(
      /^request headers too large: 6|^request headers too large: 7/,
    );
  });
});

test('a request whose headers are as many as Envoy takes gets its destination as metadata only', () => {
  const filled = (n: number) => Object.fromEntries(Array.from({ length: n }, (_, i) => [`x-filler-${i}`, 'x']));
  for (const [nMore, header] of [
    [93, POD],
    [94, undefined],
  ] as const) {
    const h = createHarness();
    h.envoy(requestHeaders({ headers: filled(nMore), endOfStream: true }), announced('BUFFERED'));
    h.route(POD);
    expect([h.answers[0]!.metadata, h.answers[0]!.set['x-gateway-destination-endpoint']]).toEqual([POD, header]);
  }
});

describe('what a client wrote never steers', () => {
  const RANK = 'x-data-parallel-rank';
  const forged = { [DESTINATION]: '10.6.6.6:80', 'target-pod': '10.6.6.6:80' };

  test('BUFFERED removes it with the headers answer and overwrites it with the choice', () => {
    const h = createHarness();
    h.envoy(requestHeaders({ headers: forged }), announced('BUFFERED'));
    expect([...h.take()[0]!.remove].sort()).toEqual(['target-pod', DESTINATION]);
    h.envoy(requestBody(BODY));
    h.route(POD);
    expect(h.take()[0]).toMatchObject({ set: { [DESTINATION]: POD }, remove: ['target-pod'] });
  });

  test('FULL_DUPLEX_STREAMED overwrites it in the one headers answer', () => {
    const h = createHarness({ targetPodHeader: 'set' });
    h.envoy(requestHeaders({ headers: forged }), announced('FULL_DUPLEX_STREAMED'));
    h.envoy(requestBody(BODY));
    h.route(POD, '192.168.1.2:8000');
    expect(h.answers[0]).toMatchObject({
      set: { [DESTINATION]: `${POD},192.168.1.2:8000`, 'target-pod': POD },
      remove: [],
    });
  });

  test.each(['BUFFERED', 'FULL_DUPLEX_STREAMED'] as const)(
    '%s: a data-parallel rank is the one chosen, or none',
    (mode) => {
      const answered = (route: (h: Harness) => void): Answer => {
        const h = createHarness();
        h.envoy(requestHeaders({ headers: { [RANK]: '7' } }), announced(mode));
        // What waits for its body has lost the header before a choice could fail.
        if (mode === 'BUFFERED') expect(h.take()[0]!.remove).toEqual([RANK]);
        h.envoy(requestBody(BODY));
        route(h);
        return h.take()[0]!;
      };
      expect(answered((h) => h.routeToRank(1, POD))).toMatchObject({
        set: { [DESTINATION]: POD, [RANK]: '1' },
        remove: [],
      });
      expect(answered((h) => h.routeToRank(0, POD)).set[RANK]).toBe('0');
      const whole = answered((h) => h.route(POD));
      expect([whole.set[RANK], whole.remove]).toEqual([undefined, [RANK]]);
    },
  );

  test('a pass-through removes every destination header, seen or withheld', () => {
    const h = createHarness({ failureMode: 'open', destinationHeader: 'x-own' });
    h.envoy(requestHeaders({ endOfStream: true }), announced('NONE'));
    h.exchange.pickFailed();
    expect([...h.answers[0]!.remove].sort()).toEqual(['target-pod', RANK, DESTINATION, 'x-own']);
    expect(h.answers[0]!.metadata).toBeNull();
  });

  test.each([['pod-a.local:80'], ['10.0.0.1'], ['10.0.0.1:80\r\nx: y'], [''], ['10.0.0.1:80, 10.0.0.2:80']])(
    'a picker that names %j is a fault, not a header',
    (endpoint) => {
      const h = createHarness();
      h.envoy(requestHeaders({ endOfStream: true }), announced('NONE'));
      const held = h.route(endpoint);
      expect(h.answers[0]!.immediate!.status).toBe('ServiceUnavailable');
      expect(held.released).toEqual(['failed']);
    },
  );

  test('an IPv6 endpoint keeps its brackets', () => {
    const h = createHarness();
    h.envoy(requestHeaders({ endOfStream: true }), announced('NONE'));
    h.route('[2001:db8::1]:8000');
    expect(h.answers[0]!.metadata).toBe('[2001:db8::1]:8000');
  });
});

describe('candidate hint', () => {
  test.each([
    ['a list', ['a:1', 'b:2'], ['a:1', 'b:2']],
    ['a comma string', 'a:1, b:2', ['a:1', 'b:2']],
    ['members that are not strings', ['a:1', 7], ['a:1']],
    ['an empty list', [], []],
    ['an empty string', '', []],
  ])('%s restricts the candidates', (_name, value, addresses) => {
    const h = createHarness();
    h.envoy(requestHeaders({ endOfStream: true }), announced('NONE'), hint(value));
    expect(h.picks[0]!.request.subset).toEqual({ kind: 'only', addresses });
  });

  test('no hint means all', () => {
    const h = createHarness();
    h.envoy(requestHeaders({ endOfStream: true }), announced('NONE'));
    expect(h.picks[0]!.request.subset).toEqual({ kind: 'all' });
  });

  test('the latest before the decision counts, a message without one keeps it', () => {
    const h = createHarness();
    h.envoy(requestHeaders(), announced('FULL_DUPLEX_STREAMED'), hint(['a:1']));
    h.envoy(requestBody('x', 'more'), hint(['b:1']));
    h.envoy(requestBody('y'));
    expect(h.picks[0]!.request.subset).toEqual({ kind: 'only', addresses: ['b:1'] });
  });
});

describe('failure modes', () => {
  type Break = [string, (h: ReturnType<typeof createHarness>) => void, string];
  const breaks: Break[] = [
    ['rejects', (h) => h.exchange.pickFailed(), 'picker_failed'],
    ['overruns its deadline', (h) => h.clock.advance(100), 'picker_timeout'],
    ['meets a bug', (h) => h.exchange.fault(), 'internal_fault'],
  ];

  describe.each(breaks)('a picker that %s', (_name, breakIt, reason) => {
    test('closed: 503 in the OpenAI shape', () => {
      const h = createHarness();
      h.envoy(requestHeaders(), announced('BUFFERED'));
      h.envoy(requestBody(BODY));
      breakIt(h);
      expect(h.answers[1]).toMatchObject({
        kind: 'immediate_response',
        set: { 'x-warmpath-reason': reason, 'retry-after': '1' },
        immediate: { status: 'ServiceUnavailable' },
      });
      expect(h.results).toMatchObject([{ outcome: 'error', reason }]);
    });

    test.each([
      ['NONE', {}, ['request_headers']],
      ['BUFFERED', {}, ['request_headers', 'request_body']],
      ['BUFFERED_PARTIAL', {}, ['request_headers', 'request_body']],
      ['FULL_DUPLEX_STREAMED', {}, ['request_headers', 'request_body']],
      ['STREAMED', { withoutWaiting: true }, ['request_headers', 'request_body']],
    ] as const)('open: %s %j goes on in its own message kinds without a destination', (mode, more, expected) => {
      const h = createHarness({ failureMode: 'open' });
      h.envoy(requestHeaders(), announced(mode, more));
      if (mode !== 'NONE') h.envoy(requestBody(BODY));
      breakIt(h);
      expect(kinds(h.answers)).toEqual(expected);
      const carrier = h.answers[mode === 'BUFFERED' || mode === 'BUFFERED_PARTIAL' ? 1 : 0]!;
      expect(carrier).toMatchObject({ set: {}, metadata: null });
      expect(carrier.remove).toContain(DESTINATION);
      if (mode === 'FULL_DUPLEX_STREAMED') expect(h.answers[1]!.echo!.body.toString()).toBe(BODY);
      h.exchange.halfClosed();
      expect(h.results).toMatchObject([{ outcome: 'passthrough', reason }]);
    });
  });

  test('a decision after the deadline books nothing', () => {
    const h = createHarness({ failureMode: 'open' });
    h.envoy(requestHeaders({ endOfStream: true }), announced('NONE'));
    h.clock.advance(100);
    expect(h.picks[0]!.signal.aborted).toBe(true);
    expect(h.route(POD).released).toEqual(['failed']);
    expect(h.answers).toHaveLength(1);
  });

  test.each(['in the turn after', 'not even then'] as const)(
    'a stalled event loop, over when the deadline is long past: the decision comes %s',
    (when) => {
      const h = createHarness({ failureMode: 'open' });
      h.envoy(requestHeaders({ endOfStream: true }), announced('NONE'));
      h.clock.stall(500);
      expect(h.answers).toEqual([]);
      if (when === 'in the turn after') h.route(POD);
      h.clock.advance(1);
      expect(h.answers.map(({ metadata }) => metadata)).toEqual([when === 'in the turn after' ? POD : null]);
      expect(h.clock.nTimers()).toBe(0);
    },
  );

  test('a decision in time leaves no timer behind', () => {
    const h = createHarness();
    h.envoy(requestHeaders({ endOfStream: true }), announced('NONE'));
    expect(h.clock.nTimers()).toBe(1);
    h.clock.advance(99);
    h.route(POD);
    expect(h.clock.nTimers()).toBe(0);
    h.clock.advance(1000);
    expect(h.answers).toHaveLength(1);
  });

  test('a bug before the request is complete passes it on when it is, without asking the picker', () => {
    const h = createHarness({ failureMode: 'open' });
    h.envoy(requestHeaders(), announced('FULL_DUPLEX_STREAMED'));
    h.exchange.fault();
    h.envoy(requestBody(BODY));
    expect(h.picks).toHaveLength(0);
    expect(kinds(h.answers)).toEqual(['request_headers', 'request_body']);
    expect(h.answers[0]!.metadata).toBeNull();
  });
});

describe('response phases', () => {
  const routedStream = (responseBodyMode: BodySendMode, ...reader: Parameters<typeof createHarness>[1][]) => {
    const h = createHarness({}, reader[0]);
    h.envoy(requestHeaders({ endOfStream: true }), announced('BUFFERED', { responseBody: responseBodyMode }));
    const held = h.route(POD);
    h.take();
    return { h, held };
  };

  test('an early answer of the upstream is acknowledged while the request is still open', () => {
    const h = createHarness();
    h.envoy(requestHeaders(), announced('FULL_DUPLEX_STREAMED'));
    h.envoy(requestBody('ab', 'more'));
    h.envoy(responseHeaders({ headers: { ':status': '429' } }));
    expect(kinds(h.take())).toEqual(['response_headers']);
    h.envoy(requestBody('cd'));
    h.route(POD);
    expect(kinds(h.take())).toEqual(['request_headers', 'request_body']);
  });

  test('STREAMED: one answer per message, and the end of the body ends the reservation', () => {
    const { h, held } = routedStream('STREAMED');
    h.envoy(responseHeaders(), servedBy('192.168.1.9:8000'));
    expect(held.firstBytes).toBe(0);
    h.envoy(responseBody('a', 'more'));
    expect(held.firstBytes).toBe(1);
    h.envoy(responseBody('b', 'more'));
    h.envoy(responseBody(''));
    expect(kinds(h.take())).toEqual(['response_headers', 'response_body', 'response_body', 'response_body']);
    expect(held).toMatchObject({ firstBytes: 1, released: ['completed'] });
    h.exchange.cancelled();
    expect(held.released).toEqual(['completed']);
    expect(h.results).toMatchObject([
      { outcome: 'routed', completion: 'response', endpoint: POD, served: '192.168.1.9:8000' },
    ]);
  });

  test.each([
    [POD, 1, ['completed'], 1],
    ['192.168.1.2:8000', 0, ['failed'], 0],
    // A name that was not given may be another word for the choice.
    ['192.168.1.9:8000', 1, ['completed'], 1],
  ])(
    'an answer that Envoy says came from %s is that of the choice, or else of a fallback',
    (from, firstBytes, released, nUsages) => {
      const usage = { promptTokens: 10, completionTokens: 3, cachedTokens: 8 };
      const h = createHarness({}, () => ({ push: () => undefined, result: () => usage }));
      h.envoy(requestHeaders({ endOfStream: true }), announced('BUFFERED', { responseBody: 'STREAMED' }));
      const held = h.route(POD, '192.168.1.2:8000');
      h.envoy(responseHeaders(), servedBy(from));
      h.envoy(responseBody('a', 'more'));
      h.envoy(responseBody('b'));
      h.exchange.halfClosed();
      expect(held).toMatchObject({ firstBytes, released });
      expect(held.usages).toHaveLength(nUsages);
      expect(h.results).toMatchObject([
        { outcome: 'routed', completion: 'response', endpoint: POD, served: from, usage },
      ]);
    },
  );

  test('FULL_DUPLEX_STREAMED: every byte comes back, trailers end it', () => {
    const { h, held } = routedStream('FULL_DUPLEX_STREAMED');
    const chunk = Buffer.alloc(100_000, 'z');
    h.envoy(responseHeaders());
    h.envoy(responseBody(chunk, 'more'));
    h.envoy(responseTrailers());
    const answers = h.take();
    expect(kinds(answers)).toEqual(['response_headers', 'response_body', 'response_body', 'response_trailers']);
    expect(Buffer.concat(answers.slice(1, 3).map(({ echo }) => echo!.body)).equals(chunk)).toBe(true);
    expect(answers.some(({ echo }) => echo?.endOfStream)).toBe(false);
    expect(held.released).toEqual(['completed']);
  });

  test.each(['500', '503', '429', '404', '302'])(
    'an answer with status %s is a failed one, however fast it comes',
    (status) => {
      for (const end of ['with the headers', 'with the body', 'with the trailers']) {
        const { h, held } = routedStream('STREAMED');
        const endOfStream = end === 'with the headers';
        h.envoy(responseHeaders({ headers: { ':status': status }, endOfStream }));
        if (!endOfStream) h.envoy(responseBody('{"error":{}}', end === 'with the body' ? undefined : 'more'));
        if (end === 'with the trailers') h.envoy(responseTrailers());
        h.exchange.cancelled();
        expect(held).toMatchObject({ firstBytes: 0, usages: [], released: ['failed'] });
        expect(h.results).toMatchObject([{ outcome: 'routed', completion: 'response' }]);
      }
    },
  );

  test('usage is read from the bytes and reported before the release', () => {
    const seen: string[] = [];
    const usage = { promptTokens: 10, completionTokens: 3, cachedTokens: 8 };
    const { h, held } = routedStream('STREAMED', (contentType) => {
      seen.push(String(contentType));
      return { push: (chunk) => void seen.push(Buffer.from(chunk).toString()), result: () => usage };
    });
    h.envoy(responseHeaders({ headers: { 'content-type': 'text/event-stream' } }));
    h.envoy(responseBody('data: 1', 'more'));
    h.envoy(responseBody('2\n'));
    expect(seen).toEqual(['text/event-stream', 'data: 1', '2\n']);
    expect(held.usages).toEqual([usage]);
    h.exchange.halfClosed();
    expect(h.results).toMatchObject([{ usage }]);
  });

  test.each([{ ':status': '500' }, { 'content-encoding': 'gzip' }])(
    'nothing is read from an answer with %j',
    (headers) => {
      let nReaders = 0;
      const { h } = routedStream('STREAMED', () => {
        nReaders += 1;
        return { push: () => undefined, result: () => null };
      });
      h.envoy(responseHeaders({ headers: headers as unknown as Record<string, string> }));
      h.envoy(responseBody('x'));
      expect(nReaders).toBe(0);
      expect(kinds(h.take())).toEqual(['response_headers', 'response_body']);
    },
  );

  test('response headers twice break the order', () => {
    const { h, held } = routedStream('NONE');
    h.envoy(responseHeaders());
    h.envoy(responseHeaders());
    expect(h.ended()).toBe('FAILED_PRECONDITION');
    expect(held.released).toEqual(['failed']);
  });
});

describe('what a later Envoy may send', () => {
  // flow_control_init (12) and client_window_update (13): members this version does not know, and never answers.
  const flowControl = [Buffer.from([0x62, 0x04, 0x08, 0x80, 0x80, 0x04]), Buffer.from([0x6a, 0x02, 0x08, 0x01])];

  test.each(['BUFFERED', 'FULL_DUPLEX_STREAMED', 'NONE'] as const)('in %s changes nothing at any place', (mode) => {
    const said = (withFlowControl: 'yes' | 'no'): unknown => {
      const h = createHarness();
      const between = (): void => {
        if (withFlowControl === 'yes') for (const bytes of flowControl) h.exchange.message(readMessage(bytes));
      };
      h.envoy(requestHeaders(), announced(mode, { responseBody: 'STREAMED' }));
      between();
      if (mode !== 'NONE') h.envoy(requestBody(BODY));
      between();
      h.route(POD);
      between();
      h.envoy(responseHeaders());
      between();
      h.envoy(responseBody('x'));
      between();
      h.exchange.halfClosed();
      between();
      return { answers: h.answers, results: h.results, ended: h.ended(), nPicks: h.picks.length };
    };
    expect(said('yes')).toEqual(said('no'));
  });

  test('before the headers does not stand for them: the mode is what they announce', () => {
    const h = createHarness({ defaultBodyMode: 'BUFFERED' });
    for (const bytes of flowControl) h.exchange.message(readMessage(bytes));
    h.envoy(requestHeaders(), announced('NONE'));
    h.route(POD);
    h.exchange.halfClosed();
    expect(kinds(h.answers)).toEqual(['request_headers']);
    expect(h.results).toMatchObject([{ mode: 'NONE', outcome: 'routed' }]);
  });

  test('in the message with the headers is passed over', () => {
    const h = createHarness();
    const first = encodeRequest({ ...requestHeaders({ endOfStream: true }), ...announced('BUFFERED') });
    h.exchange.message(readMessage(Buffer.concat([...flowControl, first, ...flowControl])));
    h.route(POD);
    expect(kinds(h.answers)).toEqual(['request_headers']);
  });
});

describe('endings', () => {
  test.each([
    ['after the headers', 0],
    ['while picking', 1],
  ])('a reset %s is cancelled, and a late decision releases what it booked', (_name, nBodies) => {
    const h = createHarness();
    h.envoy(requestHeaders(), announced('BUFFERED'));
    if (nBodies > 0) h.envoy(requestBody(BODY));
    h.exchange.cancelled();
    h.exchange.cancelled();
    expect(h.results).toMatchObject([{ outcome: 'cancelled', ending: 'reset' }]);
    expect(h.clock.nTimers()).toBe(0);
    if (nBodies === 0) return;
    expect(h.picks[0]!.signal.aborted).toBe(true);
    expect(h.route(POD).released).toEqual(['cancelled']);
    expect(kinds(h.answers)).toEqual(['request_headers']);
  });

  test('end, cancelled and close after all answers release exactly once, and the half-close is answered with status 0', () => {
    const h = createHarness();
    h.envoy(requestHeaders(), announced('BUFFERED'));
    h.envoy(requestBody(BODY));
    const held = h.route(POD);
    h.clock.advance(600);
    h.exchange.halfClosed();
    h.exchange.cancelled();
    h.exchange.cancelled();
    expect(held.released).toEqual(['completed']);
    expect(h.ended()).toBe('ok');
    expect(h.results).toMatchObject([{ outcome: 'routed', ending: 'half_close', heldMs: 600, decisionMs: 0 }]);
  });

  test('an answer that was seen to begin and not to end was cancelled', () => {
    const h = createHarness();
    h.envoy(requestHeaders({ endOfStream: true }), announced('NONE', { responseBody: 'STREAMED' }));
    const held = h.route(POD);
    h.envoy(responseHeaders());
    h.envoy(responseBody('x', 'more'));
    h.exchange.cancelled();
    expect(held.released).toEqual(['cancelled']);
    expect(h.results).toMatchObject([{ outcome: 'cancelled', ending: 'reset' }]);
  });

  // Envoy shows response headers unless it is told not to.
  test.each([
    { shown: 'headers and no body', mode: announced('NONE'), status: '200', served: {}, fate: 'completed' },
    { shown: 'headers by an old Envoy', mode: {}, status: '200', served: {}, fate: 'completed' },
    { shown: 'a refusal', mode: announced('NONE'), status: '503', served: {}, fate: 'failed' },
    { shown: 'a fallback', mode: announced('NONE'), status: '200', served: servedBy(FALLBACK), fate: 'failed' },
  ])('of an answer that shows $shown, the end of the stream is the end: $fate', ({ mode, status, served, fate }) => {
    const h = createHarness();
    h.envoy(requestHeaders({ endOfStream: true }), mode);
    const held = h.route(POD, FALLBACK);
    h.envoy(responseHeaders({ headers: { ':status': status } }), served);
    expect(held.released).toEqual([]);
    h.exchange.halfClosed();
    expect(held.released).toEqual([fate]);
    expect(h.results).toMatchObject([{ outcome: 'routed', completion: 'stream' }]);
  });

  test('an answer that goes on without us at shutdown has not been cut', () => {
    const h = createHarness();
    h.envoy(requestHeaders({ endOfStream: true }), announced('NONE', { responseBody: 'STREAMED' }));
    const held = h.route(POD);
    h.envoy(responseHeaders());
    h.exchange.drain();
    expect(held.released).toEqual(['completed']);
    expect(h.results).toMatchObject([{ outcome: 'routed', ending: 'shutdown' }]);
  });

  test('a half-close before the decision is still answered, then ends with status 0', () => {
    const h = createHarness();
    h.envoy(requestHeaders(), announced('FULL_DUPLEX_STREAMED'));
    h.envoy(requestBody(BODY));
    h.exchange.halfClosed();
    expect(h.ended()).toBeNull();
    h.route(POD);
    expect(kinds(h.answers)).toEqual(['request_headers', 'request_body']);
    expect(h.ended()).toBe('ok');
  });

  // With graceful closing this is all Envoy says of a client that went away.
  test.each(['stream', 'estimate'] as const)(
    'a half-close before the decision is a client that is gone, with completion by %s: nothing is kept of the choice',
    (completion) => {
      const h = createHarness({ completion });
      h.envoy(requestHeaders(), announced('BUFFERED'));
      h.envoy(requestBody(BODY));
      h.exchange.halfClosed();
      expect(h.route(POD).released).toEqual(['cancelled']);
      expect(h.unseen).toEqual([]);
      expect(h.results).toMatchObject([{ outcome: 'cancelled', ending: 'half_close' }]);
    },
  );

  test('a half-close is not waited on for long: the question is given up before Envoy resets the stream', () => {
    const h = createHarness({ deadlineMs: 5_000 });
    h.envoy(requestHeaders(), announced('FULL_DUPLEX_STREAMED'));
    h.envoy(requestBody(BODY));
    h.exchange.halfClosed();
    h.clock.advance(499);
    expect(h.ended()).toBeNull();
    h.clock.advance(1);
    expect(h.ended()).toBe('ok');
    expect(h.picks[0]!.signal.aborted).toBe(true);
    expect(h.results).toMatchObject([{ outcome: 'cancelled', ending: 'half_close' }]);
    expect(h.route(POD).released).toEqual(['cancelled']);
    expect(h.clock.nTimers()).toBe(0);
  });

  test('a half-close in the middle of the body ends the stream', () => {
    const h = createHarness();
    h.envoy(requestHeaders(), announced('FULL_DUPLEX_STREAMED'));
    h.exchange.halfClosed();
    expect(h.ended()).toBe('ok');
    expect(h.results).toMatchObject([{ outcome: 'cancelled' }]);
  });

  test('messages without a known member are ignored, their hint is not', () => {
    const h = createHarness();
    h.envoy({}, announced('BUFFERED'));
    h.envoy(hint(['a:1']));
    h.envoy(requestHeaders({ endOfStream: true }));
    expect(h.picks[0]!.request.subset).toEqual({ kind: 'only', addresses: ['a:1'] });
    expect(h.ended()).toBeNull();
  });

  test.each([
    ['headers twice', [requestHeaders(), requestHeaders()]],
    ['headers after a body', [requestBody('x', 'more'), requestHeaders()]],
    ['trailers twice', [requestHeaders(), requestTrailers(), requestTrailers()]],
  ])('%s end the stream with FAILED_PRECONDITION', (_name, messages) => {
    const h = createHarness();
    messages.forEach((message, i) => h.envoy(message, i === 0 ? announced('FULL_DUPLEX_STREAMED') : {}));
    expect(h.ended()).toBe('FAILED_PRECONDITION');
    expect(h.results).toMatchObject([{ outcome: 'error', reason: 'illegal_message_order' }]);
  });

  test('too many messages end a decided stream cleanly and fail an undecided one', () => {
    const decided = createHarness({ maxMessages: 3 });
    decided.envoy(requestHeaders({ endOfStream: true }), announced('NONE', { responseBody: 'STREAMED' }));
    decided.route(POD);
    for (let i = 0; i < 3; i += 1) decided.envoy(responseBody('x', 'more'));
    expect(decided.ended()).toBe('ok');
    const undecided = createHarness({ maxMessages: 3 });
    undecided.envoy(requestHeaders(), announced('FULL_DUPLEX_STREAMED'));
    for (let i = 0; i < 3; i += 1) undecided.envoy(requestBody('x', 'more'));
    expect(undecided.ended()).toBe('RESOURCE_EXHAUSTED');
  });
});

describe('shutdown', () => {
  test('an answered stream ends at once with status 0, its reservation released', () => {
    const h = createHarness();
    h.envoy(requestHeaders({ endOfStream: true }), announced('NONE'));
    const held = h.route(POD);
    h.exchange.drain();
    expect(h.ended()).toBe('ok');
    expect(held.released).toEqual(['completed']);
    expect(h.results).toMatchObject([{ outcome: 'routed', ending: 'shutdown' }]);
  });

  test('an undecided request is decided first, then ended', () => {
    const h = createHarness();
    h.envoy(requestHeaders(), announced('BUFFERED'));
    h.exchange.drain();
    expect(h.ended()).toBeNull();
    h.envoy(requestBody(BODY));
    h.route(POD);
    expect(kinds(h.answers)).toEqual(['request_headers', 'request_body']);
    expect(h.ended()).toBe('ok');
  });

  test('an echoed response is finished first: only we can give its bytes back', () => {
    const h = createHarness();
    h.envoy(requestHeaders({ endOfStream: true }), announced('NONE', { responseBody: 'FULL_DUPLEX_STREAMED' }));
    h.route(POD);
    h.envoy(responseHeaders());
    h.exchange.drain();
    expect(h.ended()).toBeNull();
    h.envoy(responseBody('x'));
    expect(h.answers.at(-1)!.echo!.endOfStream).toBe(true);
    expect(h.ended()).toBe('ok');
  });

  test('at the deadline answered streams end with status 0, others fail so that Envoy retries', () => {
    const answered = createHarness();
    answered.envoy(requestHeaders({ endOfStream: true }), announced('NONE', { responseBody: 'FULL_DUPLEX_STREAMED' }));
    answered.route(POD);
    answered.exchange.drain();
    answered.exchange.expire();
    expect(answered.ended()).toBe('ok');
    const undecided = createHarness();
    undecided.envoy(requestHeaders(), announced('BUFFERED'));
    undecided.exchange.drain();
    undecided.exchange.expire();
    expect(undecided.ended()).toBe('UNAVAILABLE');
    expect(undecided.results).toMatchObject([{ outcome: 'error', reason: 'shutdown', ending: 'failed' }]);
  });
});

test('two streams with the same request id are independent', () => {
  const [a, b] = [createHarness(), createHarness()];
  for (const h of [a, b]) h.envoy(requestHeaders({ endOfStream: true }), announced('NONE'));
  const held = createHeld();
  a.exchange.decided({ kind: 'routed', endpoints: [POD], reservation: held.reservation });
  b.exchange.cancelled();
  expect(held.fate.released).toEqual([]);
  expect(a.answers).toHaveLength(1);
});

describe('where the end of a stream says nothing of the answer', () => {
  const routedIn = (completion: 'stream' | 'estimate') => {
    const harness = createHarness({ completion });
    harness.envoy(requestHeaders({ endOfStream: true }), announced('NONE'));
    return { harness, held: harness.route(POD) };
  };

  test('the reservation outlives the stream and is handed over', () => {
    const { harness, held } = routedIn('estimate');
    harness.exchange.halfClosed();
    expect(held.released).toEqual([]);
    expect(harness.unseen).toHaveLength(1);
    expect(harness.results).toMatchObject([{ outcome: 'routed', completion: 'estimate' }]);
  });

  test('nothing is handed over while the stream is open, however long', () => {
    const { harness, held } = routedIn('estimate');
    harness.clock.advance(24 * 3_600_000);
    expect([held.released, harness.unseen]).toEqual([[], []]);
  });

  test('an answer that was seen to its end ends it, as ever', () => {
    const { harness, held } = routedIn('estimate');
    harness.envoy(responseHeaders());
    harness.envoy(responseBody('{}'));
    expect(held.released).toEqual(['completed']);
    harness.exchange.halfClosed();
    expect([harness.unseen, harness.results[0]!.completion]).toEqual([[], 'response']);
  });

  test('an answer seen to be cut ends it too', () => {
    const { harness, held } = routedIn('estimate');
    harness.envoy(responseHeaders());
    harness.envoy(responseBody('x', 'more'));
    harness.exchange.cancelled();
    expect([held.released, harness.unseen]).toEqual([['cancelled'], []]);
  });

  test('an answer of which only headers are shown is one whose end is not', () => {
    const { harness, held } = routedIn('estimate');
    harness.envoy(responseHeaders());
    harness.exchange.cancelled();
    expect([held.released, harness.unseen.length]).toEqual([[], 1]);
  });

  test('a refusal has no answer to wait for', () => {
    const { harness, held } = routedIn('estimate');
    harness.envoy(responseHeaders({ headers: { ':status': '503' } }));
    harness.exchange.cancelled();
    expect([held.released, harness.unseen]).toEqual([['failed'], []]);
  });

  test('by default the end of the stream is the end of the request', () => {
    const { harness, held } = routedIn('stream');
    harness.exchange.cancelled();
    expect([held.released, harness.unseen]).toEqual([['completed'], []]);
  });
});
