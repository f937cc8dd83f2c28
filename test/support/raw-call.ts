/** An ext_proc stream written frame by frame, on node:http2 alone: for what no gRPC library would send, or let go of. */
import http2 from 'node:http2';
import { PROCESS_PATH } from '../../src/extproc/protocol.ts';
import { decodeAnswer, encodeRequest, type Answer, type WireRequest } from './extproc-messages.ts';

/** One stream, and everything that has come back on it. */
export type RawCall = {
  readonly stream: http2.ClientHttp2Stream;
  readonly received: Buffer[];
  response: http2.IncomingHttpHeaders;
  /** Of the response where that is all there is. */
  trailers: http2.IncomingHttpHeaders;
  isClosed: boolean;
};

export function openRaw(session: http2.ClientHttp2Session, headers: http2.OutgoingHttpHeaders = {}): RawCall {
  const stream = session.request({
    ':method': 'POST',
    ':path': PROCESS_PATH,
    'content-type': 'application/grpc',
    te: 'trailers',
    ...headers,
  });
  const call: RawCall = { stream, received: [], response: {}, trailers: {}, isClosed: false };
  stream.on('response', (got, flags) => {
    call.response = got;
    if ((flags & http2.constants.NGHTTP2_FLAG_END_STREAM) !== 0) call.trailers = got;
  });
  stream.on('trailers', (got) => (call.trailers = got));
  stream.on('data', (bytes: Buffer) => call.received.push(bytes));
  stream.on('error', () => undefined);
  stream.on('close', () => (call.isClosed = true));
  return call;
}

export function frame(message: Buffer, flag = 0): Buffer {
  const prefix = Buffer.alloc(5);
  prefix[0] = flag;
  prefix.writeUInt32BE(message.length, 1);
  return Buffer.concat([prefix, message]);
}

/** The parts as one message. */
export const framed = (...parts: WireRequest[]): Buffer => frame(encodeRequest(Object.assign({}, ...parts)));
/** Every whole message so far. */
export function answersOf({ received }: RawCall): Answer[] {
  let rest = Buffer.concat(received);
  const answers: Answer[] = [];
  while (rest.length >= 5 && rest.length >= 5 + rest.readUInt32BE(1)) {
    const end = 5 + rest.readUInt32BE(1);
    if (rest[0] !== 0) throw new Error(`expected an uncompressed answer, got flag ${rest[0]}`);
    answers.push(decodeAnswer(rest.subarray(5, end)));
    rest = rest.subarray(end);
  }
  return answers;
}
