// Sends a form without leaving the page. A view may answer, the server, a proxy, or nobody: there is always a result,
// { data, problem }: what a view said in JSON, or {}, and a sentence for the page, empty when all went well.

export async function post(form, body = new FormData(form)) {
  try {
    const response = await fetch(form.action, { method: "POST", body });
    const text = await response.text();
    const type = response.headers.get("Content-Type") ?? "";
    const data = type.startsWith("application/json") ? JSON.parse(text) : {};
    if (response.ok) return { data, problem: "" };
    const said = type.startsWith("text/plain") && text.length < 300 ? text.trim() : "";
    return { data, problem: data.problem || said || `The server answered ${response.status}.` };
  } catch {
    return { data: {}, problem: "The connection broke: try again." };
  }
}
