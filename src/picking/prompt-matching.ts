/**
 * From tokens, or from what the memo knows of them, to blocks and who holds them: hashes per block size, announced and
 * routed matches, and the credit an endpoint gets for them. Never chooses.
 */
import type { Endpoint, EndpointSlot, Trust } from '../endpoints/endpoint.ts';
import { creditedTokens, type CreditWeights } from '../load/cache-trust.ts';
import type { InferenceRequest } from '../openai/request.ts';
import { requestExtraKeys, type BlockHasher, type BlockHashes } from '../prefix/block-hash.ts';
import { forkKey, type ForkKey } from '../prefix/prefix-forks.ts';
import type { PrefixIndexReader } from '../prefix/prefix-index.ts';
import type { Medium, PrefixMatch } from '../prefix/prefix-match.ts';
import type { RoutedMatch, RoutedPrefixes } from '../prefix/routed-prefixes.ts';
import type { PromptView, TokenizerLadder } from '../tokenizer/tokenizer-ladder.ts';
import type { TokenChain } from '../tokenizer/tokenizer.ts';
import type { CandidateView, Evaluation, PromptBlocks } from './decision-record.ts';

/** Whose blocks a prompt's tokens make. */
export type PromptOwner = {
  readonly request: InferenceRequest;
  /** Canonical model; '' where the request names none. */
  readonly model: string;
  readonly adapter: string | null;
};

export type PromptMatches = PromptBlocks &
  ChainMatches & {
    /** Of the longest chain, as far as a cache can serve it. */
    readonly knownTokens: number;
    /** Null where the memo knows nothing. */
    readonly promptTokens: number | null;
  };

export type ChainMatches = Omit<PromptBlocks, 'claims'> & {
  /** Largest number of blocks an engine serves from its cache, per chain: the last token is always computed. */
  readonly usableBlocks: readonly number[];
  readonly announced: readonly PrefixMatch[];
  readonly routed: readonly RoutedMatch[];
};

export type PromptMatcher = {
  /** @param tokenChains one per prompt; empty where exact tokens are not known, then the memo's claims are taken */
  match(
    owner: PromptOwner,
    tokenChains: readonly TokenChain[],
    prompt: PromptView | null,
    blockSizeTokens: number,
  ): PromptMatches;
  /** Hashes of every full block, one chain per prompt. */
  hash(owner: PromptOwner, tokenChains: readonly TokenChain[], blockSizeTokens: number): BlockHashes[];
  /** @param lengths tokens of each chain */
  lookUp(hashes: readonly BlockHashes[], lengths: readonly number[], blockSizeTokens: number): ChainMatches;
};

export type MatcherDeps = {
  readonly index: PrefixIndexReader;
  readonly hasher: BlockHasher;
  readonly routed: RoutedPrefixes;
  readonly ladder: TokenizerLadder;
};

export function createPromptMatcher({ index, hasher, routed, ladder }: MatcherDeps): PromptMatcher {
  function match(
    owner: PromptOwner,
    tokenChains: readonly TokenChain[],
    prompt: PromptView | null,
    blockSizeTokens: number,
  ): PromptMatches {
    const claims = prompt === null ? [] : ladder.claims(prompt, blockSizeTokens);
    const isExact = tokenChains.length > 0;
    const believed = claims.map((claim) => (claim?.believed === true ? claim : null));
    const hashes = isExact
      ? hash(owner, tokenChains, blockSizeTokens)
      : believed.map((claim) => claim?.hashes ?? NO_BLOCKS);
    const lengths = isExact
      ? tokenChains.map(({ tokenIds }) => tokenIds.length)
      : believed.map((claim) => claim?.promptTokens ?? 0);
    const matches = lookUp(hashes, lengths, blockSizeTokens);
    const known = believed.reduce((sum, claim) => sum + (claim?.promptTokens ?? 0), 0);
    return {
      ...matches,
      knownTokens: Math.max(0, ...matches.usableBlocks) * blockSizeTokens,
      promptTokens: known === 0 ? null : Math.max(known, claims.length > 1 ? prompt!.promptTokens : 0),
      claims,
    };
  }

  function lookUp(hashes: readonly BlockHashes[], lengths: readonly number[], blockSizeTokens: number): ChainMatches {
    return {
      blockSizeTokens,
      hashes,
      usableBlocks: lengths.map((nTokens, i) =>
        Math.min(hashes[i]!.length / 2, Math.floor(Math.max(0, nTokens - 1) / blockSizeTokens)),
      ),
      announced: hashes.map((chain) => index.longestMatch(chain)),
      routed: hashes.map((chain) => routed.longestMatch(chain)),
    };
  }

  function hash(
    { request: { cacheSalt }, model, adapter }: PromptOwner,
    tokenChains: readonly TokenChain[],
    blockSizeTokens: number,
  ): BlockHashes[] {
    const root = hasher.root(model, adapter, blockSizeTokens);
    return tokenChains.map(({ tokenIds, features }) => {
      const nBlocks = Math.floor(tokenIds.length / blockSizeTokens);
      const extraKeys = requestExtraKeys(cacheSalt, features, blockSizeTokens, nBlocks);
      return hasher.blocks(tokenIds, root, blockSizeTokens, extraKeys);
    });
  }

  return { match, hash, lookUp };
}

export type PrefixTraits = {
  readonly tieKey: number | null;
  readonly fork: ForkKey | null;
  /** Requests on their way to any endpoint that begin with the cached part. */
  readonly sharers: number;
};

/** What the scheduler wants to know of the prefix, taken from the longest of the chains. */
export function prefixTraits(
  { hashes, routed: onTheWay, blockSizeTokens }: ChainMatches,
  mostCachedTokens: number,
  among: readonly Endpoint[],
): PrefixTraits {
  const longest = hashes.reduce((best, chain, i) => (chain.length > hashes[best]!.length ? i : best), 0);
  const chain = hashes[longest];
  if (!chain || chain.length === 0) return { tieKey: null, fork: null, sharers: 0 };
  const nCached = Math.min(Math.floor(mostCachedTokens / blockSizeTokens), chain.length / 2);
  const nextBlock = Math.min(nCached, chain.length / 2 - 1);
  return {
    tieKey: chain[2 * nextBlock + 1]!,
    fork: forkKey(chain, nCached),
    sharers: among.reduce((sum, { slot }) => sum + onTheWay[longest]!.bookings(slot, nCached), 0),
  };
}

/** The chains of an evaluated request in blocks of that size. */
export function chainsOf({ blocks }: Pick<Evaluation, 'blocks'>, blockSizeTokens: number): readonly BlockHashes[] {
  return blocks.find((one) => one.blockSizeTokens === blockSizeTokens)?.hashes ?? [];
}

/** What is said to be at an endpoint of the longest match. */
export type Match = Pick<CandidateView, 'matchedBlocks' | 'matchedTokens'> & {
  /** From the start of the prompt: by events, and by what was sent there. */
  readonly announcedTokens: number;
  readonly routedTokens: number;
};

/** Several prompts in one request are several chains: the longest match decides. */
export function matched(matches: ChainMatches, slot: EndpointSlot, trust: Trust): Match {
  const { blockSizeTokens } = matches;
  let best = NO_MATCH;
  for (let i = 0; i < matches.hashes.length; i++) {
    const announced = trust === 'fallback' ? null : matches.announced[i]!;
    const usable = matches.usableBlocks[i]!;
    const announcedTokens = Math.min(announced?.blocks(slot) ?? 0, usable) * blockSizeTokens;
    const routedTokens = Math.min(matches.routed[i]!.blocks(slot), usable) * blockSizeTokens;
    const matchedTokens = Math.max(announcedTokens, routedTokens);
    if (matchedTokens <= best.matchedTokens) continue;
    const matchedBlocks = {
      gpu: announced?.blocksIn(slot, 'gpu') ?? 0,
      host: announced?.blocksIn(slot, 'host') ?? 0,
      disk: announced?.blocksIn(slot, 'disk') ?? 0,
    };
    best = { matchedBlocks, matchedTokens, announcedTokens, routedTokens };
  }
  return best;
}

/** Part of a block's computing that is saved where it lies in that medium, 0…1. */
export type MediaWeights = Readonly<Record<Medium, number>>;

/** Tokens the endpoint is credited with, at most those matched. */
export function credit(match: Match, weights: CreditWeights, of: MediaWeights): number {
  const { gpu, host, disk } = match.matchedBlocks;
  const worth = (gpu * of.gpu + host * of.host + disk * of.disk) / Math.max(1, gpu + host + disk);
  return creditedTokens({ ...match, worth }, weights);
}

const NO_MATCH: Match = {
  matchedBlocks: { gpu: 0, host: 0, disk: 0 },
  matchedTokens: 0,
  announcedTokens: 0,
  routedTokens: 0,
};
const NO_BLOCKS = new Uint32Array(0) as BlockHashes;
