/**
 * The HTTP face of a simulated vLLM pod: OpenAI API, tokenizer and render endpoints, adapters, discovery, metrics. Finds
 * the route and shapes the small answers; generated ones come from answers.ts, bodies are read by openai-requests.ts.
 */
import type { IncomingMessage, ServerResponse } from 'node:http';
import type { Clock } from '../clock.ts';
import { errorText } from '../errors.ts';
import { answer, type AnswerOptions } from './answers.ts';
import { isApiError, type ApiError } from './body-fields.ts';
import type { LoraAdapter } from './block-chain.ts';
import type { Engine } from './engine.ts';
import {
  createHttpListener,
  sendErrorBody,
  sendJson,
  sendText,
  type Exchange,
  type HttpListener,
} from './http-listener.ts';
import type { GenerationRequest, RequestReader } from './openai-requests.ts';
import type { TokenizedInput } from './prompts.ts';
import type { ServedModels } from './served-models.ts';
import { chooseRank } from './rank-choice.ts';
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
  /** One per data-parallel rank. */
  readonly engines: readonly Engine[];
  readonly models: ServedModels;
  readonly reader: RequestReader;
  metrics(): string;
  /** The answer of /kv_event_sources. */
  kvEventSources(): object;
  /** How tokenizer and render endpoints misbehave right now. */
  tokenizerDelay(): number | 'hang';
};

type Route = (exchange: Exchange) => void;
/** By method and path, `POST /tokenize`. */
type Routes = readonly (readonly [string, Route])[];
type Reader<T> = (body: unknown) => T | ApiError;
type Refuse = (response: ServerResponse, error: ApiError) => void;

/** Versions that answer as the two eras do. */
const VERSIONS = { arrays: '0.22.1', maps: '0.32.0' } as const;

export function createPodHttp(deps: PodHttpDeps, options: PodHttpOptions): HttpListener {
  const routes = new Map<string, Route>([
    ...generationRoutes(deps, options),
    ...tokenizerRoutes(deps, options),
    ...modelRoutes(deps, options),
    ...operationRoutes(deps, options),
  ]);
  const paths = new Set([...routes.keys()].map((key) => key.split(' ')[1]));
  return createHttpListener(options, (exchange) => {
    exchange.response.setHeader('date', new Date(deps.clock.unixMs()).toUTCString());
    const path = (exchange.request.url ?? '/').split('?', 1)[0]!;
    const route = routes.get(`${exchange.request.method} ${path}`);
    if (route !== undefined) return route(exchange);
    if (paths.has(path)) return sendJson(exchange.response, 405, { detail: 'Method Not Allowed' });
    return sendJson(exchange.response, 404, { detail: 'Not Found' });
  });
}

function generationRoutes(deps: PodHttpDeps, options: PodHttpOptions): Routes {
  let nAnswers = 0;
  /** Counted, so that ids stay apart when clients reuse a request id. */
  const nextId = (request: IncomingMessage, prefix: string): string => {
    const given = request.headers['x-request-id'];
    return `${prefix}-${typeof given === 'string' ? `${given}-` : ''}${options.seed}-${++nAnswers}`;
  };

  const generate = (prefix: string, read: Reader<GenerationRequest>, refuse?: Refuse): Route =>
    reading(
      read,
      (parsed, { request, response }) => {
        const engine = chooseRank(deps.engines, parsed.api, request.headers['x-data-parallel-rank']);
        if (isApiError(engine)) return sendErrorBody(response, engine.status, engine);
        answer({ engine, clock: deps.clock }, options, nextId(request, prefix), parsed, response);
      },
      refuse,
    );

  const render = (
    prefix: string,
    read: Reader<GenerationRequest>,
    shape: (rendered: readonly object[]) => unknown,
  ): Route =>
    delayed(
      deps,
      reading(read, (parsed, { request, response }) => {
        // As vLLM: rendering knows the names of the model only, whatever adapters are loaded.
        if (parsed.lora !== null) return sendErrorBody(response, 404, unknownModel(parsed.lora));
        const id = nextId(request, prefix);
        const rendered = parsed.prompts.map((prompt, i) => renderedRequest(`${id}-${i}`, prompt, parsed));
        sendJson(response, 200, shape(rendered));
      }),
    );

  const { chat, completions, responses, messages, generate: tokensIn } = deps.reader;
  const renderRoutes: Routes = [
    ['POST /v1/chat/completions/render', render('chatcmpl', chat, ([only]) => only)],
    ['POST /v1/completions/render', render('cmpl', completions, (rendered) => rendered)],
    // Later than the other two.
    ...(options.era === 'maps'
      ? ([
          ['POST /v1/responses/render', render('resp', responses, ([only]) => only)],
          ['POST /v1/messages/render', render('chatcmpl', messages, ([only]) => only)],
        ] as const)
      : []),
  ];
  const allowed = {
    on: renderRoutes,
    forbidden: renderRoutes.map(([key]) => [key, forbiddenRender] as const),
    missing: [],
  };
  return [
    ['POST /v1/chat/completions', generate('chatcmpl', chat)],
    ['POST /v1/completions', generate('cmpl', completions)],
    ['POST /v1/responses', generate('resp', responses)],
    ['POST /v1/messages', generate('chatcmpl', messages, refuseMessages)],
    ['POST /inference/v1/generate', generate('generate', tokensIn)],
    ...allowed[options.render],
  ];
}

/** What serving refuses has Anthropic's shape; what is wrong with the body itself is told before, in OpenAI's. */
const refuseMessages: Refuse = (response, error) => {
  if (error.status !== 404 && error.param !== 'input_tokens') return sendErrorBody(response, error.status, error);
  const { type, message } = error;
  sendJson(response, error.status, { type: 'error', error: { type, message } });
};

const unknownModel = ({ name }: LoraAdapter): Parameters<typeof sendErrorBody>[2] => ({
  message: `The model \`${name}\` does not exist.`,
  type: 'NotFoundError',
  param: 'model',
});

const forbiddenRender: Route = ({ response }) =>
  sendErrorBody(response, 403, {
    message: 'Render endpoints are not enabled on this server.',
    type: 'PermissionDeniedError',
    param: null,
  });

function tokenizerRoutes(deps: PodHttpDeps, options: PodHttpOptions): Routes {
  const tokenize = reading(deps.reader.tokenize, ({ tokenIds }, { response, body }) => {
    const wantsStrings = jsonField(body, 'return_token_strs') === true;
    sendJson(response, 200, {
      count: tokenIds.length,
      max_model_len: options.maxModelLen,
      tokens: tokenIds,
      token_strs: wantsStrings ? tokenIds.map((id) => decodeTokens([id], 'named')) : null,
    });
  });
  const detokenize = reading(deps.reader.detokenize, (tokenIds, { response }) => {
    sendJson(response, 200, { prompt: decodeTokens(tokenIds, 'named') });
  });
  return [
    ['POST /tokenize', delayed(deps, tokenize)],
    ['POST /detokenize', delayed(deps, detokenize)],
  ];
}

function modelRoutes({ models, clock }: PodHttpDeps, options: PodHttpOptions): Routes {
  const created = Math.floor(clock.unixMs() / 1000);
  const list: Route = ({ response }) => {
    const served = models.list().map(({ name, lora }) => ({
      id: name,
      object: 'model',
      created,
      owned_by: 'vllm',
      root: lora?.path ?? name,
      parent: lora === null ? null : models.base,
      max_model_len: lora === null ? options.maxModelLen : null,
      permission: [],
    }));
    sendJson(response, 200, { object: 'list', data: served });
  };
  const change =
    (how: 'load' | 'unload'): Route =>
    ({ response, body }) => {
      const name = jsonField(body, 'lora_name');
      if (typeof name !== 'string' || name === '') {
        return sendErrorBody(response, 400, {
          message: "'lora_name' must be a non-empty string",
          type: 'InvalidUserInput',
          param: null,
        });
      }
      const path = jsonField(body, 'lora_path');
      const outcome = how === 'load' ? models.load(name, typeof path === 'string' ? path : name) : models.unload(name);
      if (outcome === 'done') {
        const done = how === 'load' ? 'added' : 'removed';
        return sendText(response, 200, 'text/plain', `Success: LoRA adapter '${name}' ${done} successfully.`);
      }
      const [status, type, what] =
        outcome === 'unknown'
          ? ([404, 'NotFoundError', 'cannot be found'] as const)
          : ([400, 'InvalidUserInput', 'has already been loaded'] as const);
      return sendErrorBody(response, status, { message: `The lora adapter '${name}' ${what}.`, type, param: null });
    };
  return [
    ['GET /v1/models', list],
    ['POST /v1/load_lora_adapter', change('load')],
    ['POST /v1/unload_lora_adapter', change('unload')],
  ];
}

function operationRoutes(deps: PodHttpDeps, options: PodHttpOptions): Routes {
  const { engines } = deps;
  const load = (): number =>
    engines.map((engine) => engine.stats()).reduce((sum, { running, waiting }) => sum + running + waiting, 0);
  return [
    ['GET /health', ({ response }) => sendText(response, 200, 'text/plain', '')],
    ['GET /version', ({ response }) => sendJson(response, 200, { version: VERSIONS[options.era] })],
    ['GET /load', ({ response }) => sendJson(response, 200, { server_load: load() })],
    [
      'GET /metrics',
      ({ response }) => sendText(response, 200, 'text/plain; version=0.0.4; charset=utf-8', deps.metrics()),
    ],
    [
      'POST /reset_prefix_cache',
      ({ response }) => {
        const isDone = engines.map((engine) => engine.resetPrefixCache()).every((outcome) => outcome === 'done');
        if (options.era === 'arrays') sendText(response, 200, 'text/plain', '');
        else sendJson(response, 200, { success: isDone });
      },
    ],
    ...(options.era === 'maps'
      ? [['GET /kv_event_sources', ({ response }: Exchange) => sendJson(response, 200, deps.kvEventSources())] as const]
      : []),
  ];
}

/** Parses the body, or answers with what is wrong with it. */
function reading<T extends object>(
  read: Reader<T>,
  route: (parsed: T, exchange: Exchange) => void,
  refuse: Refuse = (response, error) => sendErrorBody(response, error.status, error),
): Route {
  return (exchange) => {
    const parsed = parsedBody(exchange.request, exchange.body, read);
    if (isApiError(parsed)) return refuse(exchange.response, parsed);
    return route(parsed, exchange);
  };
}

/** Tokenizer and render endpoints are the ones whose latency can be made to misbehave. */
function delayed(deps: Pick<PodHttpDeps, 'clock' | 'tokenizerDelay'>, route: Route): Route {
  return (exchange) => {
    const delay = deps.tokenizerDelay();
    if (delay === 'hang') return;
    if (delay === 0) return route(exchange);
    deps.clock.after(delay, () => {
      if (!exchange.response.destroyed) route(exchange);
    });
  };
}

function parsedBody<T>(request: IncomingMessage, body: Buffer, read: Reader<T>): T | ApiError {
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

/** A GenerateRequest as vLLM 0.32 renders it, as far as its fields mean something here. */
function renderedRequest(id: string, { tokenIds, features }: TokenizedInput, request: GenerationRequest): object {
  return {
    request_id: id,
    token_ids: tokenIds,
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
