use minijinja::{Environment, Error, ErrorKind, context};
use serde::Serialize;

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The instructions before the conversation.
    System,
    /// The person.
    User,
    /// The model.
    Assistant,
}

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ChatMessage {
    /// Who speaks.
    pub role: Role,
    /// What is said.
    pub content: String,
}

impl ChatMessage {
    /// A message of the person.
    pub fn user(content: impl Into<String>) -> Self {
        Self {
            role: Role::User,
            content: content.into(),
        }
    }

    /// A message of the model.
    pub fn assistant(content: impl Into<String>) -> Self {
        Self {
            role: Role::Assistant,
            content: content.into(),
        }
    }
}

/// Renders a chat template as the `transformers` library does: blocks are trimmed, Python's string and dictionary methods
/// exist, `raise_exception` fails with its message.
pub(super) fn render(
    source: &str,
    messages: &[ChatMessage],
    bos_token: Option<String>,
    eos_token: Option<String>,
) -> Result<String, Error> {
    let mut environment = Environment::new();
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_function(
        "raise_exception",
        |message: String| -> Result<String, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        },
    );
    let bos_token = bos_token.unwrap_or_default();
    let eos_token = eos_token.unwrap_or_default();
    let template = environment.template_from_str(source)?;
    template.render(context! { messages, bos_token, eos_token, add_generation_prompt => true })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render_plain(source: &str, messages: &[ChatMessage]) -> Result<String, Error> {
        render(source, messages, Some("<s>".into()), Some("</s>".into()))
    }

    #[test]
    fn python_idioms_of_real_templates_work() {
        let source = "{{ bos_token }}{% for message in messages %}\n  {% if message['role'] == 'user' %}\
            \n[{{ message.content.strip() | upper }}]\n{%- elif message.role.startswith('assist') %}({{ message['content'] \
            }}){{ eos_token }}{% endif %}\n{% endfor %}{% if add_generation_prompt %}>{% endif %}";
        let messages = [ChatMessage::user(" hi "), ChatMessage::assistant("<b>")];
        assert_eq!(
            render_plain(source, &messages).unwrap(),
            "<s>[HI](<b>)</s>>"
        );
    }

    #[test]
    fn an_exception_of_the_template_carries_its_message() {
        let source = "{{ raise_exception('roles must alternate') }}";
        let error = render_plain(source, &[]).unwrap_err();
        assert!(
            error.to_string().contains("roles must alternate"),
            "{error}"
        );
    }

    #[test]
    fn optional_variables_are_undefined() {
        let source = "{% if tools is defined %}tools{% endif %}{% if not date_string is defined %}no date{% endif %}";
        assert_eq!(render_plain(source, &[]).unwrap(), "no date");
    }
}
