/** The chart as Helm renders it, for tests. */
import { execFile } from 'node:child_process';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { parseAllDocuments } from 'yaml';
import type { Manifest } from './kube-schemas.ts';
import { findKubeTool } from './kube-tools.ts';

const run = promisify(execFile);

export const CHART = fileURLToPath(new URL('../../charts/warmpath', import.meta.url));

export type Values = Readonly<Record<string, unknown>>;

export type Helm = {
  /** What `helm template` renders; rejects with Helm's own words. @param sets as on the command line, `a.b=c` */
  template(values: Values, sets?: readonly string[]): Promise<readonly Manifest[]>;
  /** What the user reads after the installation. */
  notes(values: Values): Promise<string>;
  /** Rejects with Helm's own words. */
  lint(values: Values): Promise<string>;
};

/** The namespace everything is rendered for. */
export const NAMESPACE = 'llm';

export async function createHelm(): Promise<Helm> {
  const helm = await findKubeTool('helm');
  const withValues = async (args: readonly string[], values: Values): Promise<string> => {
    const folder = await mkdtemp(join(tmpdir(), 'warmpath-helm-'));
    try {
      const file = join(folder, 'values.json');
      await writeFile(file, JSON.stringify(values));
      // No cluster is asked and nothing of this user's Helm is read.
      const env = { PATH: process.env.PATH, HOME: folder, KUBECONFIG: join(folder, 'none') };
      const { stdout } = await run(helm, [...args, '--values', file], { env, timeout: 60_000, maxBuffer: 2 ** 26 });
      return stdout;
    } catch (error) {
      const { stderr = '', stdout = '' } = error as { stderr?: string; stdout?: string };
      throw new Error(stderr.trim() || stdout.trim() || String(error), { cause: error });
    } finally {
      await rm(folder, { recursive: true, force: true });
    }
  };
  return {
    async template(values, sets = []) {
      const flags = sets.flatMap((set) => ['--set', set]);
      const text = await withValues(['template', 'warmpath', CHART, '--namespace', NAMESPACE, ...flags], values);
      // As Helm and kubectl read it: `no` is a boolean, 0440 is octal.
      return parseAllDocuments(text, { version: '1.1' }).flatMap((document) => {
        // Duplicate keys are errors here; Kubernetes would take one of them.
        if (document.errors.length > 0) throw new Error(String(document.errors[0]));
        const manifest = document.toJS() as Manifest | null;
        return manifest === null ? [] : [manifest];
      });
    },
    async notes(values) {
      const args = ['install', 'warmpath', CHART, '--namespace', NAMESPACE, '--dry-run=client'];
      const text = await withValues(args, values);
      return text.slice(text.indexOf('NOTES:') + 'NOTES:'.length).trim();
    },
    lint: (values) => withValues(['lint', '--strict', CHART], values),
  };
}
