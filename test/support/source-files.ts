/** What a source file imports and does, read from its syntax tree: for the architecture test. */
import { readdirSync, readFileSync } from 'node:fs';
import { posix } from 'node:path';
import ts from 'typescript';

export type SourceFile = {
  /** Below src/, such as `prefix/block-hash.ts`. */
  readonly path: string;
  /** Files below src/, packages and `node:` modules it imports, types included; dynamic imports and workers too. */
  readonly imports: readonly string[];
  /** One line per breach of a rule that holds in every file. */
  readonly breaches: readonly string[];
  /** Sources of time and chance it calls itself: `Date.now`, `setTimeout`, … */
  readonly ambient: readonly string[];
};

const AMBIENT = new Set([
  'Date.now',
  'performance.now',
  'Math.random',
  'setTimeout',
  'setInterval',
  'setImmediate',
  'fetch',
  'new Date',
]);

export function readSourceFiles(root: URL): readonly SourceFile[] {
  return readdirSync(root, { recursive: true, encoding: 'utf8' })
    .filter((path) => path.endsWith('.ts'))
    .sort()
    .map((path) => parseSourceFile(path, readFileSync(new URL(path, root), 'utf8')));
}

export function parseSourceFile(path: string, text: string): SourceFile {
  const tree = ts.createSourceFile(path, text, ts.ScriptTarget.ES2024, true, ts.ScriptKind.TS);
  const imports = new Set<string>();
  const ambient = new Set<string>();
  const breaches: string[] = [];
  const breach = (node: ts.Node, what: string): void => {
    breaches.push(`${path}:${tree.getLineAndCharacterOfPosition(node.getStart()).line + 1} ${what}`);
  };
  const isMain = path === 'main.ts';

  const addImport = (specifier: ts.Node | undefined): void => {
    if (specifier === undefined || !ts.isStringLiteralLike(specifier)) return;
    const isOwn = specifier.text.startsWith('.');
    imports.add(isOwn ? posix.normalize(posix.join(posix.dirname(path), specifier.text)) : packageOf(specifier.text));
  };

  const visit = (node: ts.Node): void => {
    if (ts.isImportDeclaration(node) || ts.isExportDeclaration(node)) addImport(node.moduleSpecifier);
    if (ts.isImportTypeNode(node) && ts.isLiteralTypeNode(node.argument)) addImport(node.argument.literal);
    if (ts.isCallExpression(node) && node.expression.kind === ts.SyntaxKind.ImportKeyword) addImport(node.arguments[0]);
    // A worker is named by a URL, not by an import.
    if (ts.isStringLiteralLike(node) && /^\.\.?\/[\w/-]+\.ts$/.test(node.text)) addImport(node);
    if (node.kind === ts.SyntaxKind.AnyKeyword) breach(node, 'says `any`');
    if (ts.isExportAssignment(node)) breach(node, 'has a default export');
    if (ts.canHaveModifiers(node) && ts.getModifiers(node)?.some(({ kind }) => kind === ts.SyntaxKind.DefaultKeyword)) {
      breach(node, 'has a default export');
    }
    if (ts.isExportSpecifier(node) && node.name.text === 'default') breach(node, 'has a default export');
    const called = calledName(node);
    if (called !== null && AMBIENT.has(called)) ambient.add(called);
    if (ts.isPropertyAccessExpression(node)) {
      const owner = node.expression.getText();
      if (!isMain && /^(?:globalThis\.)?process$/.test(owner) && /^(?:env|argv|exit|exitCode)$/.test(node.name.text)) {
        breach(node, `touches process.${node.name.text}`);
      }
      if (owner === 'console') breach(node, 'writes to the console');
    }
    ts.forEachChild(node, visit);
  };
  visit(tree);

  if (!isMain && imports.has('node:process')) breaches.push(`${path} imports node:process`);
  for (const statement of tree.statements) {
    if (ts.isVariableStatement(statement) && (statement.declarationList.flags & ts.NodeFlags.Const) === 0) {
      breach(statement, 'has mutable module state');
    }
    // A worker's entry runs like main does.
    if (isWork(statement) && !isMain && !path.endsWith('-worker.ts')) {
      breach(statement, 'does something when imported');
    }
  }
  return { path, imports: [...imports].sort(), breaches, ambient: [...ambient] };
}

/** Every circle of imports, each once, as `a → b → a`. */
export function findCycles(files: readonly SourceFile[]): readonly string[] {
  const byPath = new Map(files.map((file) => [file.path, file]));
  const done = new Set<string>();
  const cycles: string[] = [];
  const visit = (path: string, trail: readonly string[]): void => {
    if (trail.includes(path)) {
      cycles.push([...trail.slice(trail.indexOf(path)), path].join(' → '));
      return;
    }
    if (done.has(path)) return;
    for (const next of byPath.get(path)?.imports ?? []) if (byPath.has(next)) visit(next, [...trail, path]);
    done.add(path);
  };
  for (const { path } of files) visit(path, []);
  return cycles;
}

/** Everything a file needs to run, itself included. */
export function reachableFrom(path: string, files: readonly SourceFile[]): ReadonlySet<string> {
  const byPath = new Map(files.map((file) => [file.path, file]));
  const reached = new Set<string>();
  const open = [path];
  for (let next = open.pop(); next !== undefined; next = open.pop()) {
    if (reached.has(next)) continue;
    reached.add(next);
    open.push(...(byPath.get(next)?.imports ?? []).filter((one) => byPath.has(one)));
  }
  return reached;
}

/** `@scope/name/deep` → `@scope/name`; `node:fs/promises` stays. */
function packageOf(specifier: string): string {
  if (specifier.startsWith('node:')) return specifier;
  return specifier
    .split('/')
    .slice(0, specifier.startsWith('@') ? 2 : 1)
    .join('/');
}

function isWork(statement: ts.Statement): boolean {
  return (
    ts.isExpressionStatement(statement) ||
    ts.isIfStatement(statement) ||
    ts.isIterationStatement(statement, false) ||
    ts.isTryStatement(statement) ||
    ts.isBlock(statement)
  );
}

function calledName(node: ts.Node): string | null {
  if (ts.isCallExpression(node)) return node.expression.getText();
  // With arguments it is arithmetic, without it asks the clock.
  if (ts.isNewExpression(node) && node.expression.getText() === 'Date')
    return node.arguments?.length ? null : 'new Date';
  return null;
}
