/** Faults of faulty-ingest-worker.ts, set in a shared word. */
export const NO_FAULT = 0;
/** It does nothing any more, sockets open, until the word changes. */
export const FREEZE = 1;
export const THROW = 2;
