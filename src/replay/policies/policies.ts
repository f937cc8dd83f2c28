/** Every policy by name, in the order of the table. */
import { createOracle } from './oracle.ts';
import type { CreatePolicy } from './policy.ts';
import {
  createAibrixPrefixCache,
  createDynamo,
  createLlmDDefault,
  createLlmDSticky,
  createSmgCacheAware,
} from './prefix-policies.ts';
import { createBoundedHash, createLeastRequest, createRandomPolicy, createRoundRobin } from './simple-policies.ts';
import { createWarmpath } from './warmpath.ts';

export const OWN_POLICY = 'prefix-cache';
export const ORACLE_POLICY = 'oracle';

export const POLICIES: Readonly<Record<string, CreatePolicy>> = {
  [OWN_POLICY]: createWarmpath,
  random: createRandomPolicy,
  'round-robin': createRoundRobin,
  'least-request': createLeastRequest,
  'aibrix-prefix-cache': createAibrixPrefixCache,
  'llm-d-default': createLlmDDefault,
  'llm-d-sticky': createLlmDSticky,
  dynamo: createDynamo,
  'smg-cache-aware': createSmgCacheAware,
  chwbl: createBoundedHash,
  [ORACLE_POLICY]: createOracle,
};

export const PEER_POLICIES: readonly string[] = Object.keys(POLICIES).filter(
  (name) => name !== OWN_POLICY && name !== ORACLE_POLICY,
);
