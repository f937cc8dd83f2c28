/** A tokenizer over real sockets that answers as vLLM does, or misbehaves as servers do. Its tokens are the bytes of the text. */
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import { createServer as createTlsServer, type ServerOptions } from 'node:https';
import type { AddressInfo } from 'node:net';
import type { VllmTokenizerOptions } from '../../src/tokenizer/vllm-tokenizer.ts';

export type Behaviour =
  'answer' | 'hang' | 'garbage' | 'huge' | 'endless' | 'fail' | 'busy' | 'reset' | 'redirect' | 'stall';

export type FakeCall = {
  readonly path: string;
  readonly headers: IncomingMessage['headers'];
  readonly body: Buffer;
  readonly json: Record<string, unknown>;
};

export type FakeTokenizer = {
  readonly url: string;
  readonly calls: readonly FakeCall[];
  /** How it behaves from now on. */
  behaviour: Behaviour;
  /** Status of a path that is not served, 200 where it is; of chats at /tokenize, 422 asks for a prompt as old SGLang does. */
  readonly status: { render: number; tokenize: number; tokenizeChat: number };
  /** Authorization it asks for. */
  secret: string | null;
  delayMs: number;
  /** What rendered requests are made of: a token per byte, or one per four letters, of a vocabulary as large as those of models. */
  vocabulary: 'bytes' | 'words';
  /** What it has against a request, whatever it serves; null where nothing. */
  refuse: ((path: string, body: string) => { readonly status: number; readonly message: string } | null) | null;
  /** `features` of rendered requests. */
  features: unknown;
  /** Calls whose client went away before the answer was complete. */
  nAbandoned(): number;
  /** Connections accepted so far, and those open now. */
  nConnections(): number;
  nOpenConnections(): number;
  /** Bytes of answers written so far. */
  nBytesWritten(): number;
  stop(): Promise<void>;
};

/** Options of a client under test, apart from what is remembered: equal requests are equal calls. */
export const CLIENT_OPTIONS: VllmTokenizerOptions = {
  urls: [],
  api: 'auto',
  budgetMs: 50,
  timeoutMs: 5000,
  maxInFlight: 64,
  maxQueued: 64,
  hedging: true,
  responseMaxBytes: 8 << 20,
  cacheMaxBytes: 0,
  auth: { header: 'authorization', file: null },
  tls: { caFile: null },
};

/** The tokens of a text: its bytes. */
export function fakeTokens(text: string): Uint32Array {
  return Uint32Array.from(Buffer.from(text));
}

/** Frequent words have small ids, so that ids differ in length as those of models do. */
function wordTokens(text: string): number[] {
  const ids: number[] = [];
  for (let at = 0; at < text.length; at += WORD_LENGTH) {
    let id = at;
    for (let i = at; i < at + WORD_LENGTH; i++) id = Math.imul(id ^ text.charCodeAt(i), 0x01000193);
    ids.push((id >>> 1) % ((id & 1) === 0 ? FREQUENT_WORDS : WORDS));
  }
  return ids;
}

/** What the template of this server makes of messages. */
export function fakeTemplate(fields: Record<string, unknown>): string {
  const { messages, tools, chat_template_kwargs: kwargs } = fields;
  return JSON.stringify({ messages, tools: tools ?? [], kwargs: kwargs ?? {} });
}

const WORD_LENGTH = 4;
const WORDS = 150_000;
const FREQUENT_WORDS = 5000;
const HUGE_BYTES = 16 * 1024 * 1024;
const UNKNOWN_MODEL = {
  message: 'The model `nobody` does not exist.',
  type: 'NotFoundError',
  param: 'model',
  code: 404,
};
/** FastAPI's words for a missing field. */
const LACKS_PROMPT = { detail: [{ type: 'missing', loc: ['body', 'prompt'], msg: 'Field required' }] };
const FORBIDDEN = { message: 'disabled', type: 'PermissionDeniedError', param: null, code: 403 };

/** @param tls key and certificate of an https server */
export async function startFakeTokenizer(port = 0, tls: ServerOptions | null = null): Promise<FakeTokenizer> {
  const calls: FakeCall[] = [];
  let nAbandoned = 0;
  let nConnections = 0;
  let nOpen = 0;
  let nBytesWritten = 0;

  const listen = (request: IncomingMessage, response: ServerResponse): void => {
    const chunks: Buffer[] = [];
    response.on('close', () => void (response.writableFinished || nAbandoned++));
    request.on('data', (chunk: Buffer) => chunks.push(chunk));
    request.on('end', () => {
      const body = Buffer.concat(chunks);
      const path = request.url ?? '';
      const json = (body.length === 0 ? {} : JSON.parse(body.toString())) as Record<string, unknown>;
      calls.push({ path, headers: request.headers, body, json });
      // Nothing is said after a hang, so that connections stay as they are.
      if (fake.behaviour === 'hang') return;
      if (fake.secret !== null && request.headers.authorization !== fake.secret) {
        return send(response, 401, { error: 'Unauthorized' });
      }
      setTimeout(() => respond(path, response, json), fake.delayMs);
    });
  };
  const server = tls === null ? createServer(listen) : createTlsServer(tls, listen);
  server.on('connection', (socket) => {
    nConnections++;
    nOpen++;
    socket.on('close', () => nOpen--);
  });

  const send = (response: ServerResponse, status: number, value: unknown): void => {
    const text = typeof value === 'string' ? value : JSON.stringify(value);
    nBytesWritten += text.length;
    const headers = { 'content-type': 'application/json', 'content-length': Buffer.byteLength(text) };
    response.writeHead(status, headers).end(text);
  };

  function respond(path: string, response: ServerResponse, json: Record<string, unknown>): void {
    if (fake.behaviour === 'reset') return void response.destroy();
    if (fake.behaviour === 'garbage') return send(response, 200, '{"count": 3, "tokens": [1, 2, "three"');
    if (fake.behaviour === 'fail') return send(response, 500, { error: { message: 'no' } });
    if (fake.behaviour === 'busy') return send(response, 429, { error: { message: 'later' } });
    if (fake.behaviour === 'redirect') {
      return void response.writeHead(307, { location: `${fake.url}/elsewhere` }).end();
    }
    if (fake.behaviour === 'stall') return void response.writeHead(200, { 'content-length': '100' }).write('{"tok');
    if (fake.behaviour === 'huge') return send(response, 200, ' '.repeat(HUGE_BYTES));
    if (fake.behaviour === 'endless') return writeEndlessly(response);
    const refusal = fake.refuse?.(path, JSON.stringify(json)) ?? null;
    if (refusal !== null) {
      const { status, message } = refusal;
      return send(response, status, { error: { message, type: 'Refused', param: null, code: status } });
    }
    if (path.endsWith('/completions/render')) answerRender(path, response, json);
    else if (path.endsWith('/tokenize')) answerTokenize(response, json);
    else send(response, 404, { detail: 'Not Found' });
  }

  /** No length announced, so only counting while reading ends it. */
  function writeEndlessly(response: ServerResponse): void {
    const piece = Buffer.alloc(1 << 16, '1,');
    response.writeHead(200);
    response.write('{"tokens":[');
    const more = (): void => {
      while (!response.destroyed && nBytesWritten < 1 << 30) {
        nBytesWritten += piece.length;
        if (!response.write(piece)) return void response.once('drain', more);
      }
    };
    more();
  }

  function answerRender(path: string, response: ServerResponse, json: Record<string, unknown>): void {
    if (fake.status.render === 403) return send(response, 403, { error: FORBIDDEN });
    if (fake.status.render !== 200) return send(response, fake.status.render, { detail: 'Not Found' });
    if (json['model'] === 'nobody') return send(response, 404, { error: UNKNOWN_MODEL });
    const rendered = (text: string): object => ({
      request_id: 'r',
      token_ids: fake.vocabulary === 'bytes' ? [...fakeTokens(text)] : wordTokens(text),
      features: fake.features,
      sampling_params: { temperature: 1 },
    });
    if (path.includes('chat')) return send(response, 200, rendered(fakeTemplate(json)));
    const prompts = typeof json['prompt'] === 'string' ? [json['prompt']] : (json['prompt'] as string[]);
    send(response, 200, prompts.map(rendered));
  }

  function answerTokenize(response: ServerResponse, json: Record<string, unknown>): void {
    if (fake.status.tokenize !== 200) return send(response, fake.status.tokenize, { detail: 'Not Found' });
    if (json['model'] === 'nobody') return send(response, 404, { error: UNKNOWN_MODEL });
    if ('messages' in json && fake.status.tokenizeChat !== 200) {
      return send(response, fake.status.tokenizeChat, LACKS_PROMPT);
    }
    const text = 'messages' in json ? fakeTemplate(json) : (json['prompt'] as string);
    const tokens = [...fakeTokens(text)];
    send(response, 200, { count: tokens.length, max_model_len: 8192, tokens, token_strs: null });
  }

  await new Promise<void>((resolve) => server.listen(port, '127.0.0.1', resolve));
  const fake: FakeTokenizer = {
    url: `${tls === null ? 'http' : 'https'}://127.0.0.1:${(server.address() as AddressInfo).port}`,
    calls,
    behaviour: 'answer',
    status: { render: 200, tokenize: 200, tokenizeChat: 200 },
    secret: null,
    delayMs: 0,
    vocabulary: 'bytes',
    refuse: null,
    features: null,
    nAbandoned: () => nAbandoned,
    nConnections: () => nConnections,
    nOpenConnections: () => nOpen,
    nBytesWritten: () => nBytesWritten,
    stop: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };
  return fake;
}
