// How a column answers, and the `search` field of its request that says so.

export type Mode = "served" | "search" | "mix" | "best_of_n";

export const MODES: Record<Mode, string> = {
  served: "as it is served",
  search: "with other settings",
  mix: "mixed with other aligned models",
  best_of_n: "best of n by its grader",
};

export interface Column {
  id: number;
  model: string;
  mode: Mode;
  n: number; // of best_of_n
  settings: Partial<Record<Setting, number>>; // what is left out is the model's own
  weights: Record<string, number>; // of a mix, by aligned model; what is left out is 1 for the column's own, else 0
}

export type Setting = "strength" | "rows" | "beam_width" | "num_successors" | "chunk_length";

export const SETTINGS: { name: Setting; label: string; values: number[] }[] = [
  { name: "strength", label: "Strength", values: [0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 2, 3] },
  { name: "rows", label: "Rows", values: [1, 2, 4, 8, 16, 32] },
  { name: "beam_width", label: "W, beams", values: [1, 2, 3, 4, 6, 8] },
  { name: "num_successors", label: "K, successors", values: [1, 2, 4, 8, 16] },
  { name: "chunk_length", label: "L, chunk length", values: [1, 2, 4, 8, 16, 32] },
];

export const WEIGHTS = [-2, -1.5, -1, -0.75, -0.5, -0.25, 0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 2, 3];

export const weightOf = ({ model, weights }: Column, name: string): number => weights[name] ?? (name === model ? 1 : 0);

export const BEST_OF = [2, 4, 8, 16, 32];

/** Rows are W·K, so they count only where neither W nor K is set. */
export const rowsAreSet = ({ beam_width, num_successors }: Column["settings"]): boolean =>
  beam_width !== undefined || num_successors !== undefined;

/** `aligned`: the models that can be mixed. */
export function searchOf(column: Column, aligned: string[]): Record<string, unknown> | undefined {
  const { mode, n, settings } = column;
  if (mode === "served") return undefined;
  if (mode === "mix") {
    const weights = aligned.map((name) => [name, weightOf(column, name)] as const);
    // the server counts a model that answers and is left out with the weight 1
    return { values: Object.fromEntries(weights.filter(([name, weight]) => weight !== 0 || name === column.model)) };
  }
  if (mode === "best_of_n") {
    return { beam_width: 1, num_successors: n, chunk_length: null, strength: 0, pick: "grader" };
  }
  const { rows, ...others } = settings;
  return rows === undefined || rowsAreSet(settings) ? others : settings;
}
