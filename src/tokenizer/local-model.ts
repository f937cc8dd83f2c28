/**
 * A model's own tokenizer files, as they lie beside its weights, → token ids of requests. Synchronous and not quick: its
 * place is a thread of its own.
 */
import { readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { Tokenizer } from '@huggingface/tokenizers';
import { WarmpathError, errorText } from '../errors.ts';
import type { InlineSystem } from './chat-form.ts';
import { createChatTemplate, type ChatTemplate } from './chat-template.ts';

export type LocalModelFiles = {
  /** `tokenizer.json`; a `tokenizer_config.json` beside it is read too. */
  readonly file: string;
  /** Jinja; null = `chat_template.jinja` beside the file, else what the `tokenizer_config.json` says. */
  readonly chatTemplateFile: string | null;
};

/** What is to be tokenized: a body of the chat API, or texts. */
export type LocalPrompt =
  | { readonly kind: 'chat'; readonly body: Uint8Array }
  | { readonly kind: 'texts'; readonly texts: readonly string[]; readonly specialTokens: boolean };

export type LocalModel = {
  /** One list per prompt; null where only the engine knows. Throws what the template raises. */
  tokenize(prompt: LocalPrompt): readonly Uint32Array[] | null;
  /** What its template takes. */
  readonly inlineSystem: InlineSystem;
};

type Fields = Readonly<Record<string, unknown>>;

/** Reads the files; throws a WarmpathError that names the one that is wrong. */
export function loadLocalModel({ file, chatTemplateFile }: LocalModelFiles): LocalModel {
  const beside = (name: string): string => join(dirname(file), name);
  const definition = parsed('tokenizer.file', file, read('tokenizer.file', file));
  const configText = readIfThere(beside('tokenizer_config.json'));
  const config = configText === null ? {} : parsed('tokenizer.file', beside('tokenizer_config.json'), configText);
  const source =
    chatTemplateFile === null
      ? (readIfThere(beside('chat_template.jinja')) ?? defaultTemplate(config['chat_template']))
      : read('tokenizer.chatTemplateFile', chatTemplateFile);
  const tokenizer = attempt('tokenizer.file', file, () => new Tokenizer(definition, config));
  const template =
    source === null
      ? null
      : attempt('tokenizer.chatTemplateFile', chatTemplateFile ?? file, () =>
          createChatTemplate(source, specialTokensOf(config)),
        );
  const encode = (text: string, specialTokens: boolean): Uint32Array =>
    Uint32Array.from(tokenizer.encode(text, { add_special_tokens: specialTokens }).ids);
  return {
    inlineSystem: template?.inlineSystem ?? 'first',
    tokenize(prompt) {
      if (prompt.kind === 'texts') return prompt.texts.map((text) => encode(text, prompt.specialTokens));
      return template === null ? null : chatTokens(template, prompt.body, encode);
    },
  };
}

function chatTokens(
  template: ChatTemplate,
  body: Uint8Array,
  encode: (text: string, specialTokens: boolean) => Uint32Array,
): readonly Uint32Array[] | null {
  const fields = JSON.parse(Buffer.from(body.buffer, body.byteOffset, body.length).toString('utf8')) as Fields;
  const text = template.render(fields);
  // The template writes special tokens itself.
  return text === null ? null : [encode(text, fields['add_special_tokens'] === true)];
}

/** Some models have several by name. */
function defaultTemplate(value: unknown): string | null {
  if (typeof value === 'string') return value;
  if (!Array.isArray(value)) return null;
  const named = (value as readonly Fields[]).find(({ name }) => name === 'default')?.['template'];
  return typeof named === 'string' ? named : null;
}

/** `bos_token` and the like: texts, or records of texts. */
function specialTokensOf(config: Fields): Record<string, string> {
  const tokens: Record<string, string> = {};
  for (const [name, value] of Object.entries(config)) {
    if (!name.endsWith('_token')) continue;
    const text = typeof value === 'object' && value !== null ? (value as Fields)['content'] : value;
    if (typeof text === 'string') tokens[name] = text;
  }
  return tokens;
}

function read(key: string, file: string): string {
  return attempt(key, file, () => readFileSync(file, 'utf8'));
}

function readIfThere(file: string): string | null {
  try {
    return readFileSync(file, 'utf8');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return null;
    throw new WarmpathError('io_failed', `tokenizer file cannot be read: ${errorText(error)}`, { cause: error });
  }
}

function parsed(key: string, file: string, text: string): Fields {
  return attempt(key, file, () => JSON.parse(text) as Fields);
}

function attempt<T>(key: string, file: string, work: () => T): T {
  try {
    return work();
  } catch (cause) {
    throw new WarmpathError('config_invalid', `${key} is not usable: ${errorText(cause)} (${file})`, { cause });
  }
}
