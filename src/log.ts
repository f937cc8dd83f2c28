/** JSON lines: constant lower-case message, facts as fields. Never prompts, token ids, credentials or answers. */

export type LogLevel = 'debug' | 'info' | 'warn' | 'error';
export type LogFields = Record<string, string | number | boolean | null | undefined | readonly string[]>;

export type Log = {
  /** True when debug lines are written: guard anything that costs to format. */
  readonly debugEnabled: boolean;
  debug(message: string, fields?: LogFields): void;
  info(message: string, fields?: LogFields): void;
  warn(message: string, fields?: LogFields): void;
  error(message: string, fields?: LogFields): void;
  /** The same log with fields added to every line. */
  with(fields: LogFields): Log;
};

const LEVELS: readonly LogLevel[] = ['debug', 'info', 'warn', 'error'];

/** @param level may change while it is used; @param write takes one line without its line end. */
export function createLog(
  level: LogLevel | (() => LogLevel),
  write: (line: string) => void,
  fields: LogFields = {},
  unixMs: () => number = Date.now,
): Log {
  const threshold = (): number => LEVELS.indexOf(typeof level === 'function' ? level() : level);
  const line = (at: LogLevel, message: string, more?: LogFields): void => {
    if (LEVELS.indexOf(at) < threshold()) return;
    write(JSON.stringify({ ts: new Date(unixMs()).toISOString(), level: at, msg: message, ...fields, ...more }));
  };
  return {
    get debugEnabled() {
      return threshold() === 0;
    },
    debug: (message, more) => line('debug', message, more),
    info: (message, more) => line('info', message, more),
    warn: (message, more) => line('warn', message, more),
    error: (message, more) => line('error', message, more),
    with: (more) => createLog(level, write, { ...fields, ...more }, unixMs),
  };
}

/** Writes nothing: the default of parts built outside `serve`. */
export const silentLog: Log = createLog('error', () => undefined);
