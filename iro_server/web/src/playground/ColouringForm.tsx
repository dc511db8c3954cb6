// What the colours of tokens show.

import type { Colouring } from "./tokens";
import { COLOURINGS } from "./tokens";

const KEYS: Record<Colouring, { name: string; text: string }[]> = {
  none: [],
  probability: [
    { name: "unlikely-1", text: "below 50 %" },
    { name: "unlikely-2", text: "10 %" },
    { name: "unlikely-3", text: "2 %" },
  ],
  log_ratio: [
    { name: "less-2", text: "made less likely" },
    { name: "more-2", text: "made more likely" },
  ],
  value: [
    { name: "less-2", text: "takes" },
    { name: "more-2", text: "adds" },
  ],
};

export function ColouringForm({
  colouring,
  onChange,
}: {
  colouring: Colouring;
  onChange: (colouring: Colouring) => void;
}) {
  return (
    <p class="colouring">
      <label for="colouring">Colour tokens by</label>
      <select
        id="colouring"
        value={colouring}
        onChange={(event) => onChange(event.currentTarget.value as Colouring)}
      >
        {Object.entries(COLOURINGS).map(([kind, name]) => (
          <option value={kind}>{name}</option>
        ))}
      </select>
      <small class="faint">from the next answers on</small>
      {KEYS[colouring].map(({ name, text }) => (
        <span class={name}>{text}</span>
      ))}
    </p>
  );
}
