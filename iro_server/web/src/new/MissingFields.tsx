// Says which fields of a template the rows lack.

import type { Row } from "./rows";
import { missingFields } from "./rows";

export function MissingFields({ template, rows }: { template: string; rows: Row[] }) {
  const missing = missingFields(template, rows);
  if (missing.length === 0) return null;
  return (
    <p class="bad small text" role="status">
      {missing
        .map(({ name, lacking }) =>
          lacking === rows.length ? `No row has the field ${name}.` : `${lacking} of ${rows.length} rows lack the field ${name}.`,
        )
        .join(" ")}
    </p>
  );
}
