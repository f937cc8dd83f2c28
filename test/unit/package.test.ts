import { existsSync, readFileSync } from 'node:fs';
import { describe, expect, test } from '@jest/globals';
import { readSourceFiles } from '../support/source-files.ts';

const ROOT = new URL('../../', import.meta.url);
const read = (path: string): string => readFileSync(new URL(path, ROOT), 'utf8');
const PACKAGE = JSON.parse(read('package.json')) as {
  bin: Record<string, string>;
  files: string[];
  dependencies: Record<string, string>;
  devDependencies: Record<string, string>;
  scripts: Record<string, string>;
};

describe('the npm package', () => {
  test('depends on exactly the packages the sources import', () => {
    const imported = readSourceFiles(new URL('src/', ROOT)).flatMap(({ imports }) =>
      imports.filter((name) => !name.endsWith('.ts') && !name.startsWith('node:')),
    );
    expect([...new Set(imported)].sort()).toEqual(Object.keys(PACKAGE.dependencies).sort());
  });

  test('has a command whose source can be started, and carries every folder that source reads', () => {
    expect(PACKAGE.bin).toEqual({ warmpath: 'dist/main.js' });
    expect(read('src/main.ts')).toMatch(/^#!\/usr\/bin\/env -S node( --\S+)+\n/);
    expect(PACKAGE.files).toEqual(expect.arrayContaining(['dist', 'proto', 'envoy']));
  });

  test('the command of the repository is the process that npm signals, not a child of its shell', () => {
    expect(PACKAGE.scripts['warmpath']).toMatch(/ exec node( --\S+)+ src\/main\.ts$/);
  });

  test('is started with the same young generation, and without collection of WebAssembly code, everywhere', () => {
    const flags = /--max-semi-space-size=\d+|--no-wasm-code-gc/g;
    const places = [read('src/main.ts').split('\n', 1)[0]!, PACKAGE.scripts['warmpath']!, read('Dockerfile')];
    expect(places.map((place) => place.match(flags))).toEqual(
      places.map(() => ['--max-semi-space-size=4', '--no-wasm-code-gc']),
    );
    expect(read('test/bench/extproc-run.ts').match(flags)).toEqual(['--max-semi-space-size=4']);
    expect(PACKAGE.scripts['jest']!.match(flags)).toEqual(['--no-wasm-code-gc']);
  });
});

describe('the Dockerfile', () => {
  const dockerfile = read('Dockerfile');

  test('builds on the Node that the tests run on', () => {
    expect(/^ARG NODE_IMAGE=node:([\d.]+)-/m.exec(dockerfile)?.[1]).toBe(PACKAGE.devDependencies.node);
  });

  test('installs only from the lock file', () => {
    const commands = dockerfile.replace(/^#.*$/gm, '');
    expect([...commands.matchAll(/\bnpm (\w+)/g)].map(([, command]) => command)).toEqual(['ci', 'pack', 'ci']);
  });

  test('copies only what exists and what .dockerignore lets through', () => {
    const ignore = read('.dockerignore').split('\n');
    const allowed = ignore.filter((line) => line.startsWith('!')).map((line) => line.slice(1));
    const copied = [...dockerfile.matchAll(/^COPY (?!--from)(.*) \S+$/gm)].flatMap(([, sources]) =>
      sources!.split(' '),
    );
    expect(copied.filter((path) => !existsSync(new URL(path, ROOT)))).toEqual([]);
    expect(copied.filter((path) => !allowed.includes(path.split('/')[0]!))).toEqual([]);
    expect(allowed.filter((path) => !copied.some((one) => one.split('/')[0] === path))).toEqual([]);
  });

  test('runs as a numbered user without rights', () => {
    expect(/^USER (\d+):\d+$/m.exec(dockerfile)?.[1]).toBe('65532');
  });
});
