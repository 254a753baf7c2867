// Renders the description for reading. Nothing is sent from here: a page has no Unix socket, and orders have their buttons at /.
SwaggerUIBundle({
  url: 'openapi.yaml',
  dom_id: '#api',
  deepLinking: true,
  docExpansion: 'list',
  defaultModelsExpandDepth: 0,
  defaultModelRendering: 'example',
  supportedSubmitMethods: [],
  validatorUrl: null,
});
