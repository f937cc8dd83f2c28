/** Entry of a tokenizer thread: one prompt after another. Says when its files are loaded, or why they can not be. */
import { parentPort, workerData, type MessagePort } from 'node:worker_threads';
import { WarmpathError, errorText } from '../errors.ts';
import type { InlineSystem } from './chat-form.ts';
import { loadLocalModel, type LocalModelFiles, type LocalPrompt } from './local-model.ts';

export type ToLocalWorker = { readonly id: number; readonly prompt: LocalPrompt };

export type FromLocalWorker =
  | { readonly kind: 'ready'; readonly inlineSystem: InlineSystem }
  | { readonly kind: 'unusable'; readonly problem: string }
  /** `tokenIds` null: only the engine knows. */
  | { readonly kind: 'done'; readonly id: number; readonly tokenIds: readonly Uint32Array[] | null }
  | { readonly kind: 'failed'; readonly id: number };

if (parentPort === null) {
  throw new WarmpathError('worker_died', 'local-tokenizer-worker must be started as a worker thread');
}
run(parentPort, workerData as LocalModelFiles);

function run(port: MessagePort, files: LocalModelFiles): void {
  const post = (message: FromLocalWorker, transfer: readonly ArrayBuffer[] = []): void =>
    port.postMessage(message, transfer);
  let model: ReturnType<typeof loadLocalModel>;
  try {
    model = loadLocalModel(files);
  } catch (error) {
    return post({ kind: 'unusable', problem: errorText(error) });
  }
  port.on('message', ({ id, prompt }: ToLocalWorker) => {
    try {
      const tokenIds = model.tokenize(prompt);
      post(
        { kind: 'done', id, tokenIds },
        tokenIds?.map(({ buffer }) => buffer as ArrayBuffer),
      );
    } catch {
      // A template that raises says so in words of the prompt: only that it did is told.
      post({ kind: 'failed', id });
    }
  });
  post({ kind: 'ready', inlineSystem: model.inlineSystem });
}
