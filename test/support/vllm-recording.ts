/** Answers of a real vLLM, byte by byte, as fixtures: what is in one, and a server that gives them again. */
import { readFileSync } from 'node:fs';
import { createServer, type IncomingMessage } from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { PromptCase, RefusedCase } from './vllm-prompts.ts';

export type Exchange = {
  readonly path: string;
  /** The body as JSON, or as text where it is none. */
  readonly sent: unknown;
  readonly status: number;
  /** The answer's bytes. */
  readonly answer: string;
};

export type Recording = {
  readonly engine: string;
  readonly cases: readonly PromptCase[];
  readonly refused: readonly RefusedCase[];
  readonly exchanges: readonly Exchange[];
};

/** What a server renders: everything, as vLLM 0.32; no more than chats and completions, as before; nothing. */
export type Serving = 'all' | 'chats' | 'tokenize';

export const RECORDINGS = fileURLToPath(new URL('../fixtures/tokenizers/', import.meta.url));

export function readRecording(name: string): Recording {
  return JSON.parse(readFileSync(join(RECORDINGS, name, 'recorded.json'), 'utf8')) as Recording;
}

export function isServed(path: string, serving: Serving): boolean {
  if (!path.endsWith('/render') || serving === 'all') return true;
  return serving === 'chats' && path.endsWith('/completions/render');
}

/** FastAPI's words where there is no such path. */
export const NOT_FOUND = { status: 404, answer: '{"detail":"Not Found"}' } as const;

/** Equal for bodies that say the same. */
export function keyOf(path: string, sent: unknown): string {
  return `${path} ${typeof sent === 'string' ? sent : JSON.stringify(sent)}`;
}

export function asSent(body: Buffer): unknown {
  try {
    return JSON.parse(body.toString()) as unknown;
  } catch {
    return body.toString();
  }
}

export type Answering = { readonly url: string; stop(): Promise<void> };

/** A server that answers every POST with what `answer` says. */
export async function startAnswering(
  answer: (
    path: string,
    body: Buffer,
  ) => Pick<Exchange, 'status' | 'answer'> | Promise<Pick<Exchange, 'status' | 'answer'>>,
): Promise<Answering> {
  const server = createServer((request, response) => {
    void bodyOf(request).then(async (body) => {
      const { status, answer: text } = await answer(request.url ?? '', body);
      response.writeHead(status, { 'content-type': 'application/json', server: 'uvicorn' }).end(text);
    });
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    stop: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };
}

/** @returns the server, and the requests it has no answer for */
export async function startReplay(
  recording: Recording,
  serving: Serving,
): Promise<Answering & { readonly unknown: readonly string[] }> {
  const answers = new Map(recording.exchanges.map((exchange) => [keyOf(exchange.path, exchange.sent), exchange]));
  const unknown: string[] = [];
  const answering = await startAnswering((path, body) => {
    if (!isServed(path, serving)) return NOT_FOUND;
    const key = keyOf(path, asSent(body));
    const known = answers.get(key);
    if (known === undefined) unknown.push(key);
    return known ?? { status: 500, answer: '{"error":{"message":"not recorded"}}' };
  });
  return { ...answering, unknown };
}

async function bodyOf(request: IncomingMessage): Promise<Buffer> {
  const chunks: Buffer[] = [];
  for await (const chunk of request) chunks.push(chunk as Buffer);
  return Buffer.concat(chunks);
}
