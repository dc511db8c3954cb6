import { SENDABLE } from "./api";
import { useEffect, useRef, useState } from "preact/hooks";

/** `refusal`: why the key that the tab has does not do, or nothing. */
export function KeyForm({ refusal, onKey }: { refusal: string; onKey: (key: string) => void }) {
  const [key, setKey] = useState("");
  const field = useRef<HTMLInputElement>(null);
  useEffect(() => field.current?.focus(), []);
  const strange = [...key.trim()].find((character) => !SENDABLE.test(character));
  const problem = strange ? `A key cannot contain “${strange}”.` : refusal;
  const submit = (event: Event) => {
    event.preventDefault();
    onKey(key.trim());
  };
  return (
    <section class="card narrow">
      <h1>API key</h1>
      <p>
        This server asks for a key (<code>iro keys create NAME</code>). This tab keeps it until you close it; it is sent
        to this server only.
      </p>
      <form onSubmit={submit}>
        <label for="key">Key</label>
        <input
          id="key"
          ref={field}
          type="password"
          autocomplete="off"
          value={key}
          aria-describedby={problem ? "wrong-key" : undefined}
          onInput={(event) => setKey(event.currentTarget.value)}
        />
        {problem && (
          <p class="bad" id="wrong-key" role="alert">
            {problem}
          </p>
        )}
        <button class="main" disabled={!key.trim() || strange !== undefined}>
          Continue
        </button>
      </form>
    </section>
  );
}
