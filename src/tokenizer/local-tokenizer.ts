/**
 * Tokens from the model's own files, in threads of this process: for fleets of one model whose files are at hand. Nothing is
 * asked of servers, so nothing about them can go wrong; it is as exact as the libraries are
 * (`test/integration/local-tokenizer.test.ts`). Images and what only the engine knows get no tokens.
 */
import { Worker } from 'node:worker_threads';
import { backoffMs, type Clock, type Timer } from '../clock.ts';
import { WarmpathError } from '../errors.ts';
import type { Log } from '../log.ts';
import { textOfString } from '../openai/json-scan.ts';
import type { InferenceRequest } from '../openai/request.ts';
import { createCallSlots, type Urgency } from './call-slots.ts';
import { asChat, type InlineSystem } from './chat-form.ts';
import type { LocalModelFiles, LocalPrompt } from './local-model.ts';
import type { FromLocalWorker, ToLocalWorker } from './local-tokenizer-worker.ts';
import { createSharingTokenizer, type OnTokenizerCall, type StartableTokenizer } from './sharing-tokenizer.ts';
import { holdsMedia } from './tokenize-body.ts';
import type { TokenizeFailure, TokenizeResult } from './tokenizer.ts';

export type LocalTokenizerDeps = { readonly log: Log; readonly clock: Clock; readonly onCall: OnTokenizerCall };

export type LocalTokenizerOptions = LocalModelFiles & {
  readonly threads: number;
  /** As for servers: the longest a request waits, when a prompt is given up, prompts that wait, remembered answers. */
  readonly budgetMs: number;
  readonly timeoutMs: number;
  readonly maxQueued: number;
  readonly cacheMaxBytes: number;
};

type Thread = { readonly worker: Worker; nOpen: number; isReady: boolean };

type Pending = {
  readonly thread: Thread;
  settle(result: TokenizeResult): void;
  /** The thread is done with it, also when nobody waits any more. */
  end(result: TokenizeResult): void;
};

/** Two per thread: the next prompt lies ready when one is done. */
const PROMPTS_PER_THREAD = 2;
/** Plain text takes a third of it, hostile text four times as much. Twice `timeoutMs` of it are 4 MB, and a GB of a thread's memory. */
const MS_PER_BYTE = 0.001;
const RESPAWN_BASE_MS = 500;
const RESPAWN_MAX_MS = 30_000;

export function createLocalTokenizer(deps: LocalTokenizerDeps, options: LocalTokenizerOptions): StartableTokenizer {
  const { log, clock, onCall } = deps;
  const maxInFlight = options.threads * PROMPTS_PER_THREAD;
  const slots = createCallSlots(clock, { maxInFlight, maxQueued: options.maxQueued, queueMs: options.budgetMs });
  const threads = new Set<Thread>();
  const pending = new Map<number, Pending>();
  const respawns = new Set<Timer>();
  /** Every thread has read the same files. */
  let inlineSystem: InlineSystem = 'first';
  let nextId = 0;
  let nDeaths = 0;
  let closed = false;

  /** Resolves when the files are loaded; rejects with what is wrong about them. */
  function spawn(): Promise<void> {
    const { file, chatTemplateFile } = options;
    const workerData: LocalModelFiles = { file, chatTemplateFile };
    const worker = new Worker(workerUrl(), { workerData, name: 'tokenizer' });
    const thread: Thread = { worker, nOpen: 0, isReady: false };
    threads.add(thread);
    return new Promise((resolve, reject) => {
      worker.on('message', (message: FromLocalWorker) => {
        if (message.kind === 'ready') {
          thread.isReady = true;
          inlineSystem = message.inlineSystem;
          resolve();
        } else if (message.kind === 'unusable') {
          reject(new WarmpathError('config_invalid', message.problem));
        } else {
          nDeaths = 0;
          pending.get(message.id)?.end(message.kind === 'done' ? resultOf(message.tokenIds) : none('error'));
        }
      });
      worker.on('error', (error) => log.error('tokenizer thread failed', { error: error.message }));
      worker.on('exit', () => {
        threads.delete(thread);
        for (const one of [...pending.values()]) if (one.thread === thread) one.end(none('error'));
        reject(new WarmpathError('worker_died', 'the tokenizer thread ended before its files were loaded'));
        if (!closed && thread.isReady) respawnLater();
      });
    });
  }

  function respawnLater(): void {
    const timer = clock.after(backoffMs(nDeaths++, RESPAWN_BASE_MS, RESPAWN_MAX_MS), () => {
      respawns.delete(timer);
      spawn().catch((error: unknown) => {
        log.error('tokenizer thread not started again', { error: String(error) });
        if (!closed) respawnLater();
      });
    });
    respawns.add(timer);
  }

  async function call(prompt: LocalPrompt, urgency: Urgency): Promise<TokenizeResult> {
    const admitted = slots.enter(urgency);
    if (admitted !== true && !(await admitted)) return none('rejected');
    const startMs = clock.nowMs();
    const result = await send(prompt);
    const failure = result.kind === 'none' ? result.reason : null;
    if (failure !== 'unsupported') {
      onCall('local', failure === null ? 'ok' : failure === 'timeout' ? 'timeout' : 'error', clock.nowMs() - startMs);
    }
    return result;
  }

  /** Leaves the slot when the thread is done, however long that takes: what was given up still lies before it. */
  function send(prompt: LocalPrompt): Promise<TokenizeResult> {
    const ready = [...threads].filter(({ isReady }) => isReady).sort((a, b) => a.nOpen - b.nOpen);
    const thread = ready[0];
    if (closed || thread === undefined) {
      slots.leave();
      return Promise.resolve(none('error'));
    }
    const id = nextId++;
    return new Promise((resolve) => {
      const settle = (result: TokenizeResult): void => {
        timer.cancel();
        resolve(result);
      };
      const end = (result: TokenizeResult): void => {
        pending.delete(id);
        thread.nOpen -= 1;
        slots.leave();
        settle(result);
      };
      const timer = clock.after(options.timeoutMs, () => settle(none('timeout')));
      thread.nOpen += 1;
      pending.set(id, { thread, settle, end });
      thread.worker.postMessage({ id, prompt } satisfies ToLocalWorker);
    });
  }

  return createSharingTokenizer(deps, options, {
    api: 'local',
    async start() {
      try {
        await Promise.all(Array.from({ length: options.threads }, spawn));
      } catch (error) {
        await closeThreads();
        throw error;
      }
    },
    begin(request, _urls, urgency) {
      const prompt = localPrompt(request, inlineSystem);
      if (prompt === null) return 'unsupported';
      // A thread at such a prompt does nothing else, long after everybody gave up.
      if (request.body.length * MS_PER_BYTE > options.timeoutMs) return 'rejected';
      if (!slots.canEnter(urgency)) return 'rejected';
      return { api: 'local', result: call(prompt, urgency) };
    },
    close: closeThreads,
  });

  async function closeThreads(): Promise<void> {
    closed = true;
    for (const timer of respawns) timer.cancel();
    respawns.clear();
    for (const { settle } of [...pending.values()]) settle(none('error'));
    await Promise.all([...threads].map(({ worker }) => worker.terminate()));
  }
}

/** Null where only the engine knows. */
function localPrompt(request: InferenceRequest, inlineSystem: InlineSystem): LocalPrompt | null {
  const chat = asChat(request, inlineSystem);
  if (chat === null || chat.fields.has('truncate_prompt_tokens')) return null;
  const { prompt, body, fields } = chat;
  if (prompt.kind === 'messages') return holdsMedia(chat) ? null : { kind: 'chat', body };
  if (prompt.kind !== 'texts') return null;
  const flag = fields.get('add_special_tokens');
  const isOff = flag !== undefined && Buffer.from(body.subarray(flag.start, flag.end)).toString('latin1') === 'false';
  return { kind: 'texts', texts: prompt.ranges.map((range) => textOfString(body, range)), specialTokens: !isOff };
}

function resultOf(tokenIds: readonly Uint32Array[] | null): TokenizeResult {
  if (tokenIds === null) return none('unsupported');
  return { kind: 'tokens', chains: tokenIds.map((ids) => ({ tokenIds: ids, features: [] })) };
}

function none(reason: TokenizeFailure): TokenizeResult {
  return { kind: 'none', reason };
}

/** Beside this file, in whatever language it is. */
function workerUrl(): URL {
  const isSource = import.meta.url.endsWith('.ts');
  return new URL(isSource ? './local-tokenizer-worker.ts' : './local-tokenizer-worker.js', import.meta.url);
}
