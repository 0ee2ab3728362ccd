// Reads AsyncAPI documents with the official parser: node validate.mjs FILE...
// Prints what is wrong with them, warnings too, and then exits with 1.
import { readFile } from 'node:fs/promises';
import { Parser } from '@asyncapi/parser';

const parser = new Parser();
let wrong = false;
for (const file of process.argv.slice(2)) {
  const { document, diagnostics } = await parser.parse(await readFile(file, 'utf8'), { source: file });
  for (const d of diagnostics.filter((d) => d.severity <= 1)) {
    console.log(`${file}: ${d.path.join('.')}: ${d.message}`);
    wrong = true;
  }
  if (!document) {
    console.log(`${file}: is no document`);
    wrong = true;
    continue;
  }
  console.log(`${file}: ${document.channels().all().length} channels, ${document.operations().all().length} operations`);
}
process.exit(wrong ? 1 : 0);
