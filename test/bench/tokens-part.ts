/** One part of the tokens bench in a process of its own: `tokens-part.ts turns N | trouble NAME SECONDS | cpu ROUNDS | shared`. */
import { callCost } from './tokens-cpu.ts';
import { trouble } from './tokens-trouble.ts';
import { multiTurn } from './tokens-turns.ts';

const [part, ...args] = process.argv.slice(2);
if (part === 'turns') await multiTurn(Number(args[0]));
else if (part === 'trouble') await trouble(args[0]!, Number(args[1]));
else if (part === 'cpu') await callCost(Number(args[0]));
else throw new Error(`unknown part ${part}`);
