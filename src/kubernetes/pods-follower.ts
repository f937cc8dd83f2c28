/**
 * The pods of one selector at a time: the next one takes over when its pods are known, not before. Decides nothing about
 * where a selector comes from, nor what is an endpoint.
 */
import type { createFleetBuilder, Pod } from './pods.ts';
import type { Reflector, Trouble } from './reflector.ts';

export type PodsTarget = {
  readonly labelSelector: string;
  /** For messages. */
  readonly where: string;
  readonly build: ReturnType<typeof createFleetBuilder>;
};

/** A selector in effect, with what it found. */
export type FollowPods = PodsTarget & { readonly reflector: Reflector; readonly pods: readonly Pod[] };

export type PodsListener = { onSnapshot(pods: readonly Pod[]): void; onTrouble(trouble: Trouble | null): void };

/** @returns what makes another target the one that is followed */
export function createPodsFollower(
  deps: {
    run(reflector: Reflector): Reflector;
    end(reflector: Reflector): void;
    onFollow(follow: FollowPods): void;
    onTrouble(trouble: Trouble | null): void;
  },
  createPodsReflector: (labelSelector: string, on: PodsListener) => Reflector,
): (target: PodsTarget) => void {
  let present: FollowPods | null = null;
  let coming: { target: PodsTarget; reflector: Reflector } | null = null;
  const troubles = new Map<Reflector, Trouble>();

  /** Of the newest selector first; what was wrong with one that is given up is nobody's trouble any more. */
  function showTrouble(): void {
    const known = [coming, present].map((one) => (one === null ? undefined : troubles.get(one.reflector)));
    deps.onTrouble(known.find((trouble) => trouble !== undefined) ?? null);
  }

  function giveUp(reflector: Reflector): void {
    troubles.delete(reflector);
    deps.end(reflector);
    showTrouble();
  }

  function giveUpComing(): void {
    if (coming === null) return;
    const { reflector } = coming;
    coming = null;
    giveUp(reflector);
  }

  return (target) => {
    const running = coming ?? present;
    const selector = coming?.target.labelSelector ?? present?.labelSelector;
    if (running !== null && selector === target.labelSelector) {
      // The same pods, seen with other ports.
      if (coming !== null) coming.target = target;
      else if (present !== null) deps.onFollow((present = { ...present, ...target }));
      return;
    }
    giveUpComing();
    if (present?.labelSelector === target.labelSelector) return deps.onFollow((present = { ...present, ...target }));
    const isMine = (): boolean => coming?.reflector === reflector || present?.reflector === reflector;
    const reflector = createPodsReflector(target.labelSelector, {
      onSnapshot(pods) {
        if (!isMine()) return;
        const seen = coming?.reflector === reflector ? coming.target : present!;
        const before = present?.reflector;
        present = { labelSelector: seen.labelSelector, where: seen.where, build: seen.build, reflector, pods };
        if (coming?.reflector === reflector) coming = null;
        if (before !== undefined && before !== reflector) giveUp(before);
        deps.onFollow(present);
      },
      onTrouble(trouble) {
        if (!isMine()) return;
        if (trouble === null) troubles.delete(reflector);
        else troubles.set(reflector, trouble);
        showTrouble();
      },
    });
    coming = { target, reflector };
    deps.run(reflector);
  };
}
