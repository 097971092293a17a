// The page /docs: Swagger UI for the server's own description of its API. A key entered there is not stored.

SwaggerUIBundle({
  dom_id: "#docs",
  url: "openapi.json",
  deepLinking: true,
  defaultModelsExpandDepth: 0,
  validatorUrl: null,
});
