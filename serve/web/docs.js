// The page /docs: Swagger UI over the server's own description of its API. A key that is entered stays in the page.

SwaggerUIBundle({
  dom_id: "#docs",
  url: "openapi.json",
  deepLinking: true,
  defaultModelsExpandDepth: 0,
  validatorUrl: null,
});
