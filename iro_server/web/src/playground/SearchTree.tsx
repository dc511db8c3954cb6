// The search tree: rounds from left to right, each candidate a dot whose text is shown under the pointer or focus.

import { useMemo, useRef, useState } from "preact/hooks";
import { number } from "../format";
import type { Node, Tree } from "./tree";
import { ROW, STEP, layout, pathTo } from "./tree";

export function SearchTree({ tree, label }: { tree: Tree; label: string }) {
  const nodes = useMemo(() => layout(tree), [tree]);
  const [picked, setPicked] = useState<number | null>(null);
  const svg = useRef<SVGSVGElement>(null);
  if (nodes.size === 0) return null;
  const all = [...nodes.values()];
  const height = ROW + Math.max(...all.map(({ y }) => y));
  const answer = new Set(pathTo(nodes.get(tree.answers[0] ?? 0)));
  const current = nodes.get(picked ?? tree.answers[0] ?? 0) ?? all.at(-1)!;
  const path = new Set(pathTo(current));
  const move = (event: KeyboardEvent) => {
    const next = neighbour(current, event.key, all);
    if (!next) return;
    event.preventDefault();
    setPicked(next.beam.id);
    svg.current!.querySelector<SVGGElement>(`[data-id="${next.beam.id}"]`)!.focus();
  };
  const candidates = tree.rounds.reduce((sum, { beams }) => sum + beams.length, 0);
  const name = `Search tree of ${label.toLowerCase()}`;
  return (
    <details class="search" open>
      <summary>
        Search: {tree.rounds.length} {tree.rounds.length === 1 ? "round" : "rounds"}, {candidates} candidates
      </summary>
      <div class="tree">
        <svg
          ref={svg}
          role="group"
          aria-label={name}
          width={STEP * (tree.rounds.length + 1)}
          height={height}
          onKeyDown={move}
        >
          <circle class="root" cx={STEP / 3} cy={height / 2} r={5} />
          {all.map((node) => (
            <path
              key={node.beam.id}
              class={classes({ edge: true, kept: node.kept, answer: answer.has(node) })}
              d={curve(node.parent ?? { x: STEP / 3, y: height / 2 }, node)}
            />
          ))}
          {all.map((node) => (
            <g
              key={node.beam.id}
              data-id={node.beam.id}
              role="button"
              tabIndex={node === current ? 0 : -1}
              aria-label={describe(node, answer.has(node))}
              class={classes({
                node: true,
                kept: node.kept,
                answer: answer.has(node),
                path: path.has(node),
                [`value-${node.level}`]: node.beam.value !== null,
              })}
              onFocus={() => setPicked(node.beam.id)}
              onMouseEnter={() => setPicked(node.beam.id)}
            >
              <rect class="target" x={node.x - ROW} y={node.y - ROW / 2} width={2 * ROW} height={ROW} />
              <circle cx={node.x} cy={node.y} r={node.kept ? 6 : 4} />
              {node.beam.finished && <path class="end" d={`M${node.x + 9} ${node.y - 5}v10`} />}
            </g>
          ))}
        </svg>
      </div>
      <p class="faint small">
        A dot is a candidate. Filled ones were kept, in a stronger colour the higher their value; after the last round the
        answer, the thick path, is picked from all. A bar marks a finished text.
      </p>
      <Detail node={current} isAnswer={answer.has(current)} />
    </details>
  );
}

function Detail({ node, isAnswer }: { node: Node; isAnswer: boolean }) {
  const before = pathTo(node.parent)
    .map(({ beam }) => beam.text)
    .join("");
  return (
    <div class="detail">
      <p class="faint small">{facts(node, isAnswer)}</p>
      <p class="text">
        <span class="faint">{before}</span>
        <mark>{node.beam.text || "∅"}</mark>
      </p>
    </div>
  );
}

function facts({ beam, round, kept, droppedIn }: Node, isAnswer: boolean): string {
  const parts = [`round ${round}`];
  if (beam.value !== null) parts.push(`value ${number(beam.value)}`);
  parts.push(`${beam.tokens} tokens`);
  if (beam.finished) parts.push("finished");
  if (isAnswer) parts.push("part of the answer");
  else if (droppedIn) parts.push(`dropped in round ${droppedIn}`);
  else parts.push(kept ? "kept" : "dropped");
  return parts.join(" · ");
}

const describe = (node: Node, isAnswer: boolean): string => `${facts(node, isAnswer)}: ${node.beam.text.trim()}`;

const classes = (names: Record<string, boolean>): string =>
  Object.keys(names)
    .filter((name) => names[name])
    .join(" ");

const curve = (from: { x: number; y: number }, to: { x: number; y: number }): string => {
  const middle = (from.x + to.x) / 2;
  return `M${from.x} ${from.y}C${middle} ${from.y} ${middle} ${to.y} ${to.x} ${to.y}`;
};

/** Where an arrow key leads: to the parent, to the best child, or up and down in the round. */
function neighbour(node: Node, key: string, all: Node[]): Node | undefined {
  if (key === "ArrowLeft") return node.parent ?? undefined;
  if (key === "ArrowRight") return node.children.find(({ kept }) => kept) ?? node.children[0];
  const round = all.filter((other) => other.round === node.round);
  const place = round.indexOf(node);
  if (key === "ArrowUp") return round[place - 1];
  if (key === "ArrowDown") return round[place + 1];
  return undefined;
}
