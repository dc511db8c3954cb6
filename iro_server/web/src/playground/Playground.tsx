export function Playground({ base }: { base: string; query: URLSearchParams }) {
  return <h1>Playground of {base}</h1>;
}
