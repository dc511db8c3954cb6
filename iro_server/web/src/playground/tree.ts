// A search as it goes on: every round's candidates, and where each is drawn.

import type { Beam, SearchEvent, SearchRound } from "../stream";

export interface Tree {
  rounds: SearchRound[];
  answers: number[]; // ids of the beams that the choices are
}

export const EMPTY: Tree = { rounds: [], answers: [] };

export const withEvent = (tree: Tree, event: SearchEvent): Tree =>
  "answers" in event ? { ...tree, answers: event.answers } : { ...tree, rounds: [...tree.rounds, event] };

export interface Node {
  beam: Beam;
  round: number;
  parent: Node | null;
  children: Node[];
  x: number;
  y: number;
  kept: boolean;
  droppedIn: number | null; // the round that dropped a beam which had finished before
  level: number; // of its value among all, 0 to LEVELS − 1
}

export const STEP = 52; // pixels between rounds
export const ROW = 18; // pixels between candidates
export const LEVELS = 5;
const DRAWN = 1500; // candidates; of later rounds only those that live on are drawn

/** The nodes by id. Candidates of a round stand below one another: those of one parent together, high values first. */
export function layout({ rounds }: Tree): Map<number, Node> {
  const nodes = new Map<number, Node>();
  const [lowest, highest] = range(rounds);
  for (const { round, beams, dropped } of rounds) {
    for (const id of dropped) {
      const node = nodes.get(id);
      if (node) node.droppedIn = round;
    }
    const shown = nodes.size + beams.length > DRAWN ? beams.filter(({ kept }) => kept) : beams;
    const place = ({ parent }: Beam) => (parent === null ? 0 : (nodes.get(parent)?.y ?? 0));
    const sorted = [...shown].sort((a, b) => place(a) - place(b) || (b.value ?? 0) - (a.value ?? 0) || a.id - b.id);
    sorted.forEach((beam, i) => {
      const parent = beam.parent === null ? null : (nodes.get(beam.parent) ?? null);
      const level =
        beam.value === null || highest === lowest
          ? 0
          : Math.min(LEVELS - 1, Math.floor((LEVELS * (beam.value - lowest)) / (highest - lowest)));
      const node = { beam, round, parent, children: [], x: STEP * round, y: ROW * (i + 1), level };
      nodes.set(beam.id, { ...node, kept: beam.kept, droppedIn: null });
      parent?.children.push(nodes.get(beam.id)!);
    });
  }
  return nodes;
}

function range(rounds: SearchRound[]): [number, number] {
  let lowest = Infinity;
  let highest = -Infinity;
  for (const { beams } of rounds)
    for (const { value } of beams)
      if (value !== null) {
        lowest = Math.min(lowest, value);
        highest = Math.max(highest, value);
      }
  return [lowest, highest];
}

/** From the first round's candidate to this one. */
export function pathTo(node: Node | null | undefined): Node[] {
  const path: Node[] = [];
  for (let step = node ?? null; step; step = step.parent) path.unshift(step);
  return path;
}
