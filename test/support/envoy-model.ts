/**
 * A small model of Envoy's own state machine for one HTTP request: it sends what Envoy would send, when it would, and
 * throws on every answer Envoy would call spurious. What reaches the pod is kept, to be compared with what the client sent.
 * Written from the behaviour table of the protocol (order, legal answers, where mutations count), not from the code tested.
 */
import type { BodySendMode } from '../../src/extproc/messages.ts';
import {
  announced,
  DEFAULT_HEADERS,
  requestBody,
  requestHeaders,
  requestTrailers,
  responseBody,
  responseHeaders,
  responseTrailers,
  type Answer,
  type WireRequest,
} from './extproc-messages.ts';

export type Scenario = {
  readonly requestMode: Exclude<BodySendMode, 'GRPC'>;
  readonly withoutWaiting: boolean;
  readonly responseMode: 'NONE' | 'STREAMED' | 'BUFFERED' | 'FULL_DUPLEX_STREAMED';
  /** Null: the headers end the request. */
  readonly requestChunks: readonly Buffer[] | null;
  /** An own message for the end of the body, as HTTP/1 chunked requests have. */
  readonly emptyLastChunk: boolean;
  readonly requestTrailers: boolean;
  readonly responseChunks: readonly Buffer[] | null;
  readonly responseTrailers: boolean;
  /** Envoy 1.35 to 1.37 in FULL_DUPLEX_STREAMED. */
  readonly repeatsEndOfStream: boolean;
  /** What the client forged. */
  readonly headers: Readonly<Record<string, string>>;
};

export type EnvoyModel = {
  /** What Envoy could send now, by direction. */
  sendable(): ('request' | 'response')[];
  send(direction: 'request' | 'response'): WireRequest;
  receive(answer: Answer): void;
  /** Everything sent was answered and nothing is left to send for the request. */
  requestDone(): boolean;
  responseDone(): boolean;
  readonly pod: {
    /** Headers and metadata in force when the host was picked; null while it is not. */
    picked: { headers: Readonly<Record<string, string>>; metadata: string | null } | null;
    body: Buffer;
  };
  readonly client: { immediate: Answer | null; body: Buffer };
};

type Lane = {
  readonly name: 'request' | 'response';
  readonly fullDuplex: boolean;
  /** Messages in order, each with the condition under which Envoy sends it. */
  readonly script: { message: WireRequest; kind: string; bytes: Buffer; waits: 'for_all_answers' | 'no' }[];
  nSent: number;
  /** Kinds sent and not yet answered, oldest first (outside full duplex). */
  outstanding: { kind: string; bytes: Buffer }[];
  headersAnswered: boolean;
  endOfStreamBack: boolean;
  trailersSent: boolean;
  trailersBack: boolean;
};

export function createEnvoyModel(scenario: Scenario): EnvoyModel {
  const headers: Record<string, string> = { ...DEFAULT_HEADERS, ...scenario.headers };
  let metadata: string | null = null;
  const request = requestLane(scenario);
  const response = responseLane(scenario);
  const pod: EnvoyModel['pod'] = { picked: null, body: Buffer.alloc(0) };
  const client: EnvoyModel['client'] = { immediate: null, body: Buffer.alloc(0) };
  let nMessages = 0;

  const maySend = (lane: Lane): boolean => {
    const next = lane.script[lane.nSent];
    return next !== undefined && (next.waits === 'no' || lane.outstanding.length === 0);
  };

  function receive(answer: Answer): void {
    if (client.immediate !== null) throw new Error(`${answer.kind} after an immediate response`);
    if (answer.kind === 'immediate_response') {
      client.immediate = answer;
      return;
    }
    const lane = answer.kind.startsWith('request') ? request : response;
    if (answer.metadata !== null) metadata = answer.metadata;
    if (lane.fullDuplex) receiveFullDuplex(lane, answer);
    else receiveInOrder(lane, answer);
    if (lane === request && mutationsCount(answer)) mutate(answer);
    pickWhenDue(answer);
  }

  /** Exactly one answer per message, same kind, same order. */
  function receiveInOrder(lane: Lane, answer: Answer): void {
    const oldest = lane.outstanding.shift();
    if (oldest === undefined || oldest.kind !== answer.kind) {
      throw new Error(`spurious ${answer.kind}: outstanding is ${oldest?.kind ?? 'nothing'}`);
    }
    if (answer.echo !== null) throw new Error('spurious streamed_response outside FULL_DUPLEX_STREAMED');
    if (answer.kind === `${lane.name}_body`) flow(lane, oldest.bytes);
  }

  /** Headers first, then any number of pieces of which at most one ends the stream, then trailers if there were any. */
  function receiveFullDuplex(lane: Lane, answer: Answer): void {
    const what = answer.kind.slice(lane.name.length + 1);
    if (what === 'headers') {
      if (lane.headersAnswered || lane.nSent === 0) throw new Error('spurious headers answer');
      lane.headersAnswered = true;
    } else if (what === 'body') {
      if (!lane.headersAnswered) throw new Error('spurious body answer before the headers answer');
      if (answer.echo === null) throw new Error('spurious plain body answer in FULL_DUPLEX_STREAMED');
      if (lane.endOfStreamBack || lane.trailersBack) throw new Error('spurious body answer after the end');
      if (answer.echo.endOfStream && lane.trailersSent) throw new Error('end of stream although trailers follow');
      lane.endOfStreamBack = answer.echo.endOfStream;
      flow(lane, answer.echo.body);
    } else {
      if (!lane.trailersSent || lane.trailersBack) throw new Error('spurious trailers answer');
      if (!lane.headersAnswered) throw new Error('trailers answer before the headers answer');
      lane.trailersBack = true;
    }
  }

  function flow(lane: Lane, bytes: Buffer): void {
    if (lane === request) pod.body = Buffer.concat([pod.body, bytes]);
    else client.body = Buffer.concat([client.body, bytes]);
  }

  function mutationsCount(answer: Answer): boolean {
    if (pod.picked !== null) return false;
    if (answer.kind === 'request_headers') return true;
    return answer.kind === 'request_body' && scenario.requestMode.startsWith('BUFFERED');
  }

  function mutate(answer: Answer): void {
    if (!answer.changesHeaders) return;
    for (const name of answer.remove) delete headers[name];
    Object.assign(headers, answer.set);
    const fields = Object.entries(headers);
    const nBytes = fields.reduce((sum, [name, value]) => sum + Buffer.byteLength(name) + Buffer.byteLength(value), 0);
    if (fields.length > 100 || nBytes > 60 * 1024) {
      throw new Error(`header_mutation_result_exceeds_limit: ${fields.length} headers, ${nBytes} bytes`);
    }
  }

  /** The router runs once the filter lets the headers go on. */
  function pickWhenDue(answer: Answer): void {
    if (pod.picked !== null) return;
    const holdsHeaders = scenario.requestMode.startsWith('BUFFERED') && scenario.requestChunks !== null;
    const due = holdsHeaders ? answer.kind === 'request_body' : answer.kind === 'request_headers';
    if (due) pod.picked = { headers: { ...headers }, metadata };
  }

  return {
    sendable() {
      if (client.immediate !== null) return [];
      const lanes: ('request' | 'response')[] = [];
      if (maySend(request)) lanes.push('request');
      // An upstream may answer before it has the whole request, but not before it was picked.
      if (pod.picked !== null && maySend(response)) lanes.push('response');
      return lanes;
    },
    send(direction) {
      const lane = direction === 'request' ? request : response;
      const { message, kind, bytes } = lane.script[lane.nSent]!;
      lane.nSent += 1;
      if (kind.endsWith('trailers')) lane.trailersSent = true;
      if (!lane.fullDuplex) lane.outstanding.push({ kind, bytes });
      nMessages += 1;
      if (nMessages > 1) return message;
      const { responseMode, withoutWaiting } = scenario;
      return {
        ...message,
        ...announced(scenario.requestMode, {
          responseBody: responseMode,
          ...(withoutWaiting ? { withoutWaiting } : {}),
        }),
      };
    },
    receive,
    requestDone: () => done(request),
    responseDone: () => done(response),
    pod,
    client,
  };
}

function done(lane: Lane): boolean {
  if (lane.nSent < lane.script.length) return false;
  if (!lane.fullDuplex) return lane.outstanding.length === 0;
  const hasBody = lane.script.some(({ kind }) => kind.endsWith('body'));
  const hasTrailers = lane.script.some(({ kind }) => kind.endsWith('trailers'));
  if (lane.script.length === 0) return true;
  return lane.headersAnswered && (hasTrailers ? lane.trailersBack : !hasBody || lane.endOfStreamBack);
}

function requestLane(scenario: Scenario): Lane {
  const { requestMode: mode, requestChunks: chunks } = scenario;
  const fullDuplex = mode === 'FULL_DUPLEX_STREAMED';
  const freely = fullDuplex || (mode === 'STREAMED' && scenario.withoutWaiting);
  const script: Lane['script'] = [];
  const headers = requestHeaders({ headers: scenario.headers, endOfStream: chunks === null });
  script.push({ message: headers, kind: 'request_headers', bytes: Buffer.alloc(0), waits: 'no' });
  const pieces =
    chunks === null || mode === 'NONE' ? [] : mode.startsWith('BUFFERED') ? [Buffer.concat(chunks)] : chunks;
  const ends = piecesWithEnds(
    pieces,
    scenario.emptyLastChunk && !mode.startsWith('BUFFERED'),
    scenario.requestTrailers,
  );
  ends.forEach(({ bytes, end }, i) => {
    const waits = freely || i > 0 ? 'no' : 'for_all_answers';
    script.push({ message: requestBody(bytes, end), kind: 'request_body', bytes, waits });
  });
  if (fullDuplex && scenario.repeatsEndOfStream && chunks !== null && !scenario.requestTrailers) {
    const bytes = Buffer.alloc(0);
    script.push({ message: requestBody(bytes), kind: 'request_body', bytes, waits: 'no' });
  }
  if (scenario.requestTrailers && chunks !== null) {
    const waits = freely ? 'no' : 'for_all_answers';
    script.push({ message: requestTrailers(), kind: 'request_trailers', bytes: Buffer.alloc(0), waits });
  }
  return lane('request', fullDuplex, script);
}

function responseLane(scenario: Scenario): Lane {
  const { responseMode: mode, responseChunks: chunks } = scenario;
  const fullDuplex = mode === 'FULL_DUPLEX_STREAMED';
  const script: Lane['script'] = [];
  if (chunks !== null) {
    const none = chunks.length === 0 && !scenario.responseTrailers;
    const headers = responseHeaders({ endOfStream: none });
    script.push({ message: headers, kind: 'response_headers', bytes: Buffer.alloc(0), waits: 'no' });
    const pieces = mode === 'NONE' || chunks.length === 0 ? [] : mode === 'BUFFERED' ? [Buffer.concat(chunks)] : chunks;
    piecesWithEnds(pieces, false, scenario.responseTrailers).forEach(({ bytes, end }, i) => {
      const waits = fullDuplex || i > 0 ? 'no' : 'for_all_answers';
      script.push({ message: responseBody(bytes, end), kind: 'response_body', bytes, waits });
    });
    if (scenario.responseTrailers) {
      const waits = fullDuplex ? 'no' : 'for_all_answers';
      script.push({ message: responseTrailers(), kind: 'response_trailers', bytes: Buffer.alloc(0), waits });
    }
  }
  return lane('response', fullDuplex, script);
}

function piecesWithEnds(
  pieces: readonly Buffer[],
  emptyLast: boolean,
  trailersFollow: boolean,
): { bytes: Buffer; end: 'eos' | 'more' }[] {
  const all = emptyLast && pieces.length > 0 && !trailersFollow ? [...pieces, Buffer.alloc(0)] : pieces;
  return all.map((bytes, i) => ({ bytes, end: i === all.length - 1 && !trailersFollow ? 'eos' : 'more' }));
}

function lane(name: Lane['name'], fullDuplex: boolean, script: Lane['script']): Lane {
  return {
    name,
    fullDuplex,
    script,
    nSent: 0,
    outstanding: [],
    headersAnswered: false,
    endOfStreamBack: false,
    trailersSent: false,
    trailersBack: false,
  };
}
