/** What the benches of the external processor send: whole requests, encoded beforehand. */
import { loadServices } from '../../src/extproc/services.ts';
import { grpcFrame, type Exchange } from './grpc-load.ts';

export type Mode = Exchange['mode'];

export const MODES: readonly Mode[] = ['BUFFERED', 'FULL_DUPLEX_STREAMED'];
/** As the picker of the other benches serves it. */
export const MODEL = 'm';
/** An HTTP/1.1 request of this length reaches Envoy's filter in pieces of about this size. */
const CHUNK_BYTES = 65_536;

const process_ = loadServices().externalProcessor['Process']!;
export const encode = (message: object): Buffer => grpcFrame(process_.requestSerialize(message) as Buffer);

/** A chat of about `nBytes` that differs from every other by its number. */
export function chatBody(nBytes: number, id: number): Buffer {
  const start = `{"model":"${MODEL}","messages":[{"role":"user","content":"${String(id).padStart(9, '0')} `;
  const end = '"}],"max_tokens":16}';
  const word = 'the quick brown fox jumps over the lazy dog ';
  const text = word.repeat(Math.ceil(nBytes / word.length)).slice(0, Math.max(0, nBytes - start.length - end.length));
  return Buffer.from(`${start}${text}${end}`);
}

export function exchangeOf(mode: Mode, body: Buffer): Exchange {
  const headers: Record<string, string> = {
    ':authority': 'llm.example',
    ':path': '/v1/chat/completions',
    ':method': 'POST',
    ':scheme': 'http',
    'user-agent': 'OpenAI/Python 1.99.1',
    accept: 'application/json',
    'accept-encoding': 'gzip, deflate',
    authorization: 'Bearer 0123456789abcdef0123456789abcdef',
    'content-type': 'application/json',
    'content-length': String(body.length),
    'x-forwarded-for': '10.1.2.3',
    'x-forwarded-proto': 'http',
    'x-request-id': '6e9a3a3e-1f7d-4c1c-9a5b-0d2f4f3d2c1b',
    'x-stainless-lang': 'python',
    'x-stainless-retry-count': '0',
  };
  const first = encode({
    request_headers: {
      headers: { headers: Object.entries(headers).map(([key, value]) => ({ key, raw_value: Buffer.from(value) })) },
    },
    metadata_context: {},
    protocol_config: { request_body_mode: mode },
  });
  const pieces: Buffer[] = [];
  const step = mode === 'BUFFERED' ? body.length : CHUNK_BYTES;
  for (let at = 0; at < body.length; at += step) {
    const piece = body.subarray(at, at + step);
    pieces.push(
      encode({ request_body: { body: piece, end_of_stream: at + step >= body.length }, metadata_context: {} }),
    );
  }
  return {
    mode,
    headers: first,
    body: Buffer.concat(pieces),
    echoBytes: mode === 'BUFFERED' ? 0 : body.length,
    response: null,
  };
}

/** An answer as an engine streams it: headers, 15 tokens, and the event with usage. */
export const STREAMED_ANSWER: NonNullable<Exchange['response']> = {
  nMessages: 17,
  frames: Buffer.concat([
    encode({
      response_headers: {
        headers: {
          headers: [
            { key: ':status', raw_value: Buffer.from('200') },
            { key: 'content-type', raw_value: Buffer.from('text/event-stream; charset=utf-8') },
          ],
        },
      },
    }),
    ...Array.from({ length: 16 }, (_, i) => {
      const choices = i === 15 ? [] : [{ index: 0, delta: { content: ' token' }, logprobs: null, finish_reason: null }];
      const usage = i === 15 ? { prompt_tokens: 900, completion_tokens: 15, total_tokens: 915 } : null;
      const event = { id: 'chatcmpl-0', object: 'chat.completion.chunk', created: 0, model: MODEL, choices, usage };
      const bytes = Buffer.from(`data: ${JSON.stringify(event)}\n\n`);
      return encode({ response_body: { body: bytes, end_of_stream: i === 15 } });
    }),
  ]),
};
