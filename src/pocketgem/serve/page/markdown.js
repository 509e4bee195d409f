// Markdown as a model writes it -> DOM nodes. Nothing is ever parsed as HTML, so no answer can bring markup of its own.

const INLINE = /(`+)([^`]|[^`][\s\S]*?[^`])\1(?!`)|\*\*(?=\S)([\s\S]*?\S)\*\*|(?<![\w*])\*(?=[^\s*])([^*\n]*[^\s*])\*(?!\w)|\[([^\]\n]+)\]\((https?:\/\/[^\s)]+)\)/;
const LONGEST_LINE = 20000; // beyond it a line is shown as it is: no pattern is run over it

export function markdown(text) {
  const root = document.createDocumentFragment();
  const lines = text.split("\n");
  for (let at = 0; at < lines.length;) at = block(lines, at, root);
  return root;
}

function block(lines, at, root) {
  const line = lines[at];
  const fence = /^ {0,3}(```+|~~~+)\s*([\w+#.-]*)/.exec(line);
  if (fence) return code(lines, at, fence, root);
  const heading = /^(#{1,6})\s+(.*)/.exec(line);
  if (heading) return add(root, `h${Math.min(6, heading[1].length + 1)}`, heading[2], at + 1);
  if (/^\s*([-*_])(\s*\1){2,}\s*$/.test(line)) return root.append(element("hr")), at + 1;
  if (/^\s*([-*+]|\d{1,9}[.)])\s+/.test(line)) return list(lines, at, root);
  if (/^>/.test(line)) return quote(lines, at, root);
  if (/\|/.test(line) && /^[\s|:-]+$/.test(lines[at + 1] ?? "") && /-/.test(lines[at + 1])) return table(lines, at, root);
  return line.trim() ? paragraph(lines, at, root) : at + 1;
}

function code(lines, at, fence, root) {
  let end = at + 1;
  while (end < lines.length && !lines[end].trimStart().startsWith(fence[1])) end++;
  const pre = element("pre"), inner = element("code");
  inner.textContent = lines.slice(at + 1, end).join("\n");
  if (fence[2]) inner.dataset.language = fence[2];
  pre.append(inner);
  root.append(pre);
  return end + 1;
}

function list(lines, at, root) {
  const item = /^(\s*)([-*+]|(\d{1,9})[.)])\s+(.*)/;
  const first = item.exec(lines[at]);
  const holder = element(first[3] ? "ol" : "ul");
  if (first[3] && first[3] !== "1") holder.start = Number(first[3]);
  const indent = first[1].length;
  while (at < lines.length) {
    const match = item.exec(lines[at]);
    if (!match || match[1].length < indent || Boolean(match[3]) !== Boolean(first[3])) break;
    if (match[1].length > indent + 1 && holder.lastChild) { at = list(lines, at, holder.lastChild); continue; }
    const entry = element("li");
    const text = [match[4]];
    for (at++; at < lines.length && /^\s{2,}\S/.test(lines[at]) && !item.test(lines[at]); at++) text.push(lines[at].trim());
    inline(text.join("\n"), entry);
    holder.append(entry);
  }
  root.append(holder);
  return at;
}

function quote(lines, at, root) {
  const inner = [];
  for (; at < lines.length && /^>/.test(lines[at]); at++) inner.push(lines[at].replace(/^> ?/, ""));
  const holder = element("blockquote");
  inline(inner.join("\n"), holder);
  root.append(holder);
  return at;
}

function table(lines, at, root) {
  const cells = (line) => line.trim().replace(/^\||\|$/g, "").split("|");
  const holder = element("table");
  const row = (line, kind) => {
    const tr = element("tr");
    for (const cell of cells(line)) inline(cell.trim(), tr.appendChild(element(kind)));
    holder.append(tr);
  };
  row(lines[at], "th");
  for (at += 2; at < lines.length && lines[at].includes("|"); at++) row(lines[at], "td");
  root.append(holder);
  return at;
}

function paragraph(lines, at, root) {
  const text = [];
  const starts = /^(#{1,6}\s|>|\s*([-*+]|\d{1,9}[.)])\s+| {0,3}(```|~~~))/;
  do text.push(lines[at++]); while (at < lines.length && lines[at].trim() && !starts.test(lines[at]));
  return add(root, "p", text.join("\n"), at);
}

function add(root, kind, text, next) {
  inline(text, root.appendChild(element(kind)));
  return next;
}

function inline(text, to) {
  while (text && text.length < LONGEST_LINE) {
    const match = INLINE.exec(text);
    if (!match) break;
    plain(text.slice(0, match.index), to);
    to.append(marked(match));
    text = text.slice(match.index + match[0].length);
  }
  plain(text, to);
}

function marked(match) {
  if (match[1]) { const code = element("code"); code.textContent = match[2]; return code; }
  if (match[3]) { const strong = element("strong"); inline(match[3], strong); return strong; }
  if (match[4]) { const em = element("em"); inline(match[4], em); return em; }
  const link = element("a");
  Object.assign(link, { href: match[6], textContent: match[5], target: "_blank", rel: "noopener noreferrer nofollow", title: match[6] });
  return link;
}

function plain(text, to) {
  text.split("\n").forEach((line, index) => {
    if (index) to.append(element("br"));
    if (line) to.append(line);
  });
}

function element(kind) { return document.createElement(kind); }
