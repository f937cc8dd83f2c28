/** The file of engine profiles, followed: a file that is broken later keeps the last good one in effect, and says so. */
import { WarmpathError } from '../errors.ts';
import { createFileFollower, type FileText } from '../file-follower.ts';
import type { Log } from '../log.ts';
import { parseEngineSeeds, type EngineSeeds, type ParsedSeeds } from './engine-seeds.ts';

export type EngineSeedFileDeps = {
  readonly log: Log;
  /** Once at start and after every change. */
  onSeeds(seeds: EngineSeeds): void;
  /** Why the newest file is not in effect, null when it is. */
  onProblem(problem: string | null): void;
};

export type EngineSeedFileOptions = {
  readonly file: string;
  readonly gpuTypeLabel: string | null;
  readonly pollMs?: number;
};

export type EngineSeedFile = {
  /** Rejects with `config_invalid` and every mistake. */
  start(): Promise<void>;
  stop(): Promise<void>;
};

export function createEngineSeedFile(
  { log, onSeeds, onProblem }: EngineSeedFileDeps,
  { file, gpuTypeLabel, pollMs }: EngineSeedFileOptions,
): EngineSeedFile {
  const follower = createFileFollower({ log, onText }, { file, what: 'engine profiles', pollMs });

  function onText(read: FileText): void {
    const parsed = parseSeedFile(read, file, gpuTypeLabel);
    if (parsed.kind === 'seeds') {
      log.info('engine profiles read', { file, profiles: parsed.seeds.nProfiles });
      onSeeds(parsed.seeds);
      onProblem(null);
      return;
    }
    log.warn('engine profiles not used, the last good ones stay in effect', { file, mistakes: parsed.mistakes });
    onProblem(parsed.mistakes.join('; '));
  }

  return {
    async start() {
      const parsed = parseSeedFile(await follower.first(), file, gpuTypeLabel);
      if (parsed.kind === 'mistakes') throw new WarmpathError('config_invalid', parsed.mistakes.join('\n'));
      onSeeds(parsed.seeds);
      follower.follow();
    },
    stop: () => follower.stop(),
  };
}

export function parseSeedFile(read: FileText, file: string, gpuTypeLabel: string | null): ParsedSeeds {
  if (read.kind === 'text') return parseEngineSeeds(read.text, file, gpuTypeLabel);
  return { kind: 'mistakes', mistakes: [`cannot read the engine profiles ${file}: ${read.why}`] };
}
