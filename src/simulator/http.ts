/**
 * The HTTP face of a simulated vLLM pod: OpenAI API, tokenizer and render endpoints, discovery, metrics. Reads bodies,
 * finds the route and writes errors in vLLM's shape; what answers say comes from answers.ts and openai-requests.ts.
 */
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { Socket } from 'node:net';
import type { Clock } from '../clock.ts';
import { WarmpathError, errorText } from '../errors.ts';
import { answer, type AnswerOptions } from './answers.ts';
import type { Engine } from './engine.ts';
import {
  isApiError,
  type ApiError,
  type GenerationRequest,
  type RequestReader,
  type TokenizedInput,
} from './openai-requests.ts';
import type { ServedModels } from './served-models.ts';
import { decodeTokens } from './tokenizer.ts';

export type RenderMode = 'on' | 'forbidden' | 'missing';

export type PodHttpOptions = AnswerOptions & {
  readonly host: string;
  /** 0 picks a free port. */
  readonly port: number;
  readonly maxModelLen: number;
  readonly render: RenderMode;
  /** Part of answer ids. */
  readonly seed: number;
};

export type PodHttpDeps = {
  readonly clock: Clock;
  readonly engine: Engine;
  readonly models: ServedModels;
  readonly reader: RequestReader;
  metrics(): string;
  /** The answer of /kv_event_sources. */
  kvEventSources(): object;
  /** How tokenizer and render endpoints misbehave right now. */
  tokenizerDelay(): number | 'hang';
};

export type PodHttp = {
  /** @returns `host:port` as it can be connected to */
  start(): Promise<string>;
  /** Ends ('close') or resets ('reset') every connection, answered or not. Resolves when the port is free. */
  stop(how: 'close' | 'reset'): Promise<void>;
};

const BODY_MAX_BYTES = 64 * 1024 * 1024;

type Exchange = { readonly request: IncomingMessage; readonly response: ServerResponse; readonly body: Buffer };
type Route = (exchange: Exchange) => void;

export function createPodHttp(deps: PodHttpDeps, options: PodHttpOptions): PodHttp {
  const { engine, models, clock, reader } = deps;
  let nAnswers = 0;

  const answerId = (request: IncomingMessage, prefix: string): string => {
    const given = request.headers['x-request-id'];
    return `${prefix}-${typeof given === 'string' ? given : `${options.seed}-${nAnswers}`}`;
  };

  const generate =
    (prefix: string, read: (body: unknown) => GenerationRequest | ApiError): Route =>
    ({ request, response, body }) => {
      const parsed = parsedBody(request, body, read);
      if (isApiError(parsed)) return sendError(response, parsed);
      // The counter keeps engine ids apart when clients reuse a request id.
      nAnswers++;
      return answer(deps, options, answerId(request, prefix), parsed, response);
    };

  /** Tokenizer endpoints are the ones whose latency can be made to misbehave. */
  const delayed =
    (route: Route): Route =>
    (exchange) => {
      const delay = deps.tokenizerDelay();
      if (delay === 'hang') return;
      if (delay === 0) return route(exchange);
      clock.after(delay, () => {
        if (!exchange.response.destroyed) route(exchange);
      });
    };

  const render = (
    prefix: string,
    read: (body: unknown) => GenerationRequest | ApiError,
    shape: (rendered: object[]) => unknown,
  ): Route => {
    if (options.render === 'forbidden') {
      const message = 'Render endpoints are not enabled on this server.';
      return ({ response }) => sendJson(response, 403, errorShape(message, 'PermissionDeniedError', null, 403));
    }
    return delayed(({ request, response, body }) => {
      const parsed = parsedBody(request, body, read);
      if (isApiError(parsed)) return sendError(response, parsed);
      nAnswers++;
      const id = answerId(request, prefix);
      sendJson(response, 200, shape(parsed.prompts.map((prompt, i) => renderedRequest(id, i, prompt, parsed))));
    });
  };

  const tokenize: Route = ({ request, response, body }) => {
    const parsed = parsedBody(request, body, reader.tokenize);
    if (isApiError(parsed)) return sendError(response, parsed);
    const wantsStrings = jsonField(body, 'return_token_strs') === true;
    const strings = wantsStrings ? parsed.tokenIds.map((id) => decodeTokens([id], 'named')) : undefined;
    sendJson(response, 200, {
      count: parsed.tokenIds.length,
      max_model_len: options.maxModelLen,
      tokens: parsed.tokenIds,
      token_strs: strings,
    });
  };

  const detokenize: Route = ({ request, response, body }) => {
    const parsed = parsedBody(request, body, reader.detokenize);
    if (isApiError(parsed)) return sendError(response, parsed);
    sendJson(response, 200, { prompt: decodeTokens(parsed, 'named') });
  };

  const listModels: Route = ({ response }) => {
    const list = models.list().map(({ name, lora }) => ({
      id: name,
      object: 'model',
      created: Math.floor(clock.unixMs() / 1000),
      owned_by: 'vllm',
      root: name,
      parent: lora === null ? null : models.base,
      max_model_len: lora === null ? options.maxModelLen : null,
      permission: [],
    }));
    sendJson(response, 200, { object: 'list', data: list });
  };

  const changeAdapters =
    (change: 'load' | 'unload'): Route =>
    ({ response, body }) => {
      const name = jsonField(body, 'lora_name');
      if (typeof name !== 'string' || name === '') {
        return sendJson(response, 400, errorShape("'lora_name' must be provided", 'InvalidUserInput', null, 400));
      }
      const outcome = change === 'load' ? models.load(name) : models.unload(name);
      if (outcome === 'done') {
        const done = change === 'load' ? 'added' : 'removed';
        return sendText(response, 200, 'text/plain', `Success: LoRA adapter '${name}' ${done} successfully.`);
      }
      const status = outcome === 'unknown' ? 404 : 400;
      const message = `The lora adapter '${name}' ${outcome === 'unknown' ? 'cannot be found' : 'has already been loaded'}.`;
      return sendJson(
        response,
        status,
        errorShape(message, status === 404 ? 'NotFoundError' : 'InvalidUserInput', null, status),
      );
    };

  const resetPrefixCache: Route = ({ response }) => {
    const outcome = engine.resetPrefixCache();
    if (options.era === 'arrays') return sendText(response, 200, 'text/plain', '');
    return sendJson(response, 200, { success: outcome === 'done' });
  };

  const routes = new Map<string, Route>([
    ['POST /v1/chat/completions', generate('chatcmpl', reader.chat)],
    ['POST /v1/completions', generate('cmpl', reader.completions)],
    ['POST /tokenize', delayed(tokenize)],
    ['POST /detokenize', delayed(detokenize)],
    ['GET /v1/models', listModels],
    ['POST /v1/load_lora_adapter', changeAdapters('load')],
    ['POST /v1/unload_lora_adapter', changeAdapters('unload')],
    ['GET /health', ({ response }) => sendText(response, 200, 'text/plain', '')],
    [
      'GET /version',
      ({ response }) => sendJson(response, 200, { version: options.era === 'maps' ? '0.32.0' : '0.22.1' }),
    ],
    [
      'GET /load',
      ({ response }) => sendJson(response, 200, { server_load: engine.stats().running + engine.stats().waiting }),
    ],
    [
      'GET /metrics',
      ({ response }) => sendText(response, 200, 'text/plain; version=0.0.4; charset=utf-8', deps.metrics()),
    ],
    ['POST /reset_prefix_cache', resetPrefixCache],
  ]);
  if (options.era === 'maps') {
    routes.set('GET /kv_event_sources', ({ response }) => sendJson(response, 200, deps.kvEventSources()));
  }
  if (options.render !== 'missing') {
    routes.set(
      'POST /v1/chat/completions/render',
      render('chatcmpl', reader.chat, (rendered) => rendered[0]),
    );
    routes.set(
      'POST /v1/completions/render',
      render('cmpl', reader.completions, (rendered) => rendered),
    );
  }

  return createListener(options, (exchange) => {
    const path = (exchange.request.url ?? '/').split('?', 1)[0]!;
    const route = routes.get(`${exchange.request.method} ${path}`);
    if (route !== undefined) return route(exchange);
    const known = [...routes.keys()].some((key) => key.endsWith(` ${path}`));
    if (known) return sendJson(exchange.response, 405, { detail: 'Method Not Allowed' });
    return sendJson(exchange.response, 404, { detail: 'Not Found' });
  });
}

/** A GenerateRequest as vLLM 0.32 renders it, as far as its fields mean something here. */
function renderedRequest(id: string, index: number, prompt: TokenizedInput, request: GenerationRequest): object {
  const { features } = prompt;
  return {
    request_id: request.prompts.length === 1 ? id : `${id}-${index}`,
    token_ids: prompt.tokenIds,
    token_offsets: null,
    features:
      features.length === 0
        ? null
        : {
            mm_hashes: { image: features.map((feature) => feature.identifier) },
            mm_placeholders: { image: features.map(({ offset, length }) => ({ offset, length })) },
            kwargs_data: null,
          },
    content_parts: null,
    sampling_params: { n: request.nSamples, max_tokens: request.maxTokens },
    model: request.model,
    stream: request.delivery === 'stream',
    stream_options: null,
    cache_salt: request.cacheSalt,
    priority: 0,
    kv_transfer_params: null,
  };
}

function createListener(options: PodHttpOptions, serve: (exchange: Exchange) => void): PodHttp {
  let server: Server | null = null;
  const sockets = new Set<Socket>();
  return {
    async start() {
      const listening = createServer({ keepAliveTimeout: 0, requestTimeout: 0 }, (request, response) => {
        collectBody(request, response, (body) => serve({ request, response, body }));
      });
      listening.on('connection', (socket) => {
        socket.setNoDelay();
        sockets.add(socket);
        socket.once('close', () => sockets.delete(socket));
      });
      await listen(listening, options.host, options.port);
      server = listening;
      const bound = listening.address();
      const port = typeof bound === 'object' && bound !== null ? bound.port : options.port;
      return `${options.host.includes(':') ? `[${options.host}]` : options.host}:${port}`;
    },
    async stop(how) {
      if (server === null) return;
      const closing = server;
      server = null;
      await new Promise<void>((resolve) => {
        closing.close(() => resolve());
        for (const socket of sockets) {
          if (how === 'reset') socket.resetAndDestroy();
          else socket.destroy();
        }
      });
    },
  };
}

async function listen(server: Server, host: string, port: number): Promise<void> {
  await new Promise<void>((resolve, reject) => {
    server.once('error', (cause: NodeJS.ErrnoException) => {
      reject(
        cause.code === 'EADDRINUSE'
          ? new WarmpathError('address_in_use', `Address in use: http://${host}:${port}`, { cause })
          : new WarmpathError('io_failed', `Cannot listen on http://${host}:${port}: ${errorText(cause)}`, { cause }),
      );
    });
    server.listen(port, host, resolve);
  });
}

function collectBody(request: IncomingMessage, response: ServerResponse, done: (body: Buffer) => void): void {
  const chunks: Buffer[] = [];
  let nBytes = 0;
  request.on('data', (chunk: Buffer) => {
    nBytes += chunk.length;
    if (nBytes <= BODY_MAX_BYTES) chunks.push(chunk);
  });
  request.once('end', () => {
    if (nBytes <= BODY_MAX_BYTES) return done(Buffer.concat(chunks));
    const message = `Body too large: ${nBytes} bytes, limit ${BODY_MAX_BYTES}`;
    return sendJson(response, 413, errorShape(message, 'BadRequestError', null, 413));
  });
  // A client that goes away is noticed through the response's close event.
  request.on('error', () => response.destroy());
}

function parsedBody<T>(request: IncomingMessage, body: Buffer, read: (body: unknown) => T | ApiError): T | ApiError {
  const mediaType = (request.headers['content-type'] ?? '').split(';', 1)[0]!.trim().toLowerCase();
  if (mediaType !== 'application/json') return badRequest("Unsupported Media Type: Only 'application/json' is allowed");
  let value: unknown;
  try {
    value = JSON.parse(body.toString('utf8'));
  } catch (error) {
    return badRequest(`The body is not JSON: ${errorText(error)}`);
  }
  return read(value);
}

function badRequest(message: string): ApiError {
  return { kind: 'error', status: 400, type: 'BadRequestError', message, param: null };
}

/** A field of a body that is read leniently, undefined when there is none. */
function jsonField(body: Buffer, name: string): unknown {
  try {
    const value: unknown = JSON.parse(body.toString('utf8'));
    return typeof value === 'object' && value !== null ? (value as Record<string, unknown>)[name] : undefined;
  } catch {
    return undefined;
  }
}

function errorShape(message: string, type: string, param: string | null, code: number): object {
  return { error: { message, type, param, code } };
}

function sendError(response: ServerResponse, error: ApiError): void {
  sendJson(response, error.status, errorShape(error.message, error.type, error.param, error.status));
}

function sendJson(response: ServerResponse, status: number, value: unknown): void {
  sendText(response, status, 'application/json', JSON.stringify(value));
}

function sendText(response: ServerResponse, status: number, contentType: string, text: string): void {
  const bytes = Buffer.from(text);
  response.writeHead(status, { 'content-type': contentType, 'content-length': bytes.length });
  response.end(bytes);
}
