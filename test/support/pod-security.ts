/** The "restricted" level of the Pod Security Standards, as its admission plug-in judges a pod template. */
import type { Manifest } from './kube-schemas.ts';

type Fields = Record<string, unknown>;

const VOLUMES = [
  'configMap',
  'csi',
  'downwardAPI',
  'emptyDir',
  'ephemeral',
  'image',
  'persistentVolumeClaim',
  'projected',
  'secret',
];
const HOST = ['hostNetwork', 'hostPID', 'hostIPC'];

/** @returns one line per breach; empty = admitted */
export function restrictedBreaches(workload: Manifest): readonly string[] {
  const { template } = workload.spec as { template: { spec: Fields } };
  const pod = template.spec;
  const breaches = HOST.filter((field) => pod[field] === true).map((field) => `${field} is true`);
  for (const volume of (pod.volumes ?? []) as Fields[]) {
    const [kind] = Object.keys(volume).filter((key) => key !== 'name');
    if (!VOLUMES.includes(String(kind))) breaches.push(`volume ${String(volume.name)} is a ${String(kind)}`);
  }
  const ofPod = fieldsOf(pod.securityContext);
  const containers = [pod.containers, pod.initContainers, pod.ephemeralContainers].flatMap(
    (some) => (some ?? []) as Fields[],
  );
  for (const container of containers) {
    const own = fieldsOf(container.securityContext);
    const effective = (field: string): unknown => own[field] ?? ofPod[field];
    const breach = (what: string): void => void breaches.push(`container ${String(container.name)}: ${what}`);
    if (effective('runAsNonRoot') !== true) breach('runAsNonRoot is not true');
    if (effective('runAsUser') === 0) breach('runAsUser is 0');
    const { type: seccomp } = fieldsOf(effective('seccompProfile'));
    if (seccomp !== 'RuntimeDefault' && seccomp !== 'Localhost')
      breach('seccompProfile is neither RuntimeDefault nor Localhost');
    if (own.allowPrivilegeEscalation !== false) breach('allowPrivilegeEscalation is not false');
    if (own.privileged === true) breach('privileged');
    if ((own.procMount ?? 'Default') !== 'Default') breach('procMount is not Default');
    const { drop = [], add = [] } = fieldsOf(own.capabilities) as { drop?: string[]; add?: string[] };
    if (!drop.includes('ALL')) breach('capabilities.drop has not ALL');
    if (add.some((one) => one !== 'NET_BIND_SERVICE')) breach(`capabilities.add has ${add.join(', ')}`);
    if (((container.ports ?? []) as Fields[]).some(({ hostPort = 0 }) => hostPort !== 0)) breach('has a hostPort');
  }
  return breaches;
}

function fieldsOf(value: unknown): Fields {
  return (value ?? {}) as Fields;
}
